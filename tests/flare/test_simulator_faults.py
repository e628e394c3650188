"""Faults and mistakes in FLARE's simulator: what they cost, and what is said."""

import json
from pathlib import Path

import pytest
from PIL import Image

from faulty import faulty_job
from helpers import changed, simulate
from pt_peft.environment import own_code
from pt_peft.experiment.own_images import Columns, SiteData
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft_flare.job_folder import write_job, write_workspace


def test_faults_cost_their_site_the_round(tiny, workspace, shared_host, tmp_path):
    """At the server, as the site's own filter is left out of this job."""
    faults = {"1": "nan", "2": "shape", "3": "extra key", "4": "hang", "5": "die", "6": "extra metric", "7": "no dxo"}
    experiment = changed(tiny, federation={"rounds": 9, "site_timeout_s": 30})
    job = faulty_job(experiment, tmp_path / "job", faults, egress_filter=False)
    run = simulate(job, workspace, "-n", "3", "-t", "3", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    reasons = {
        1: "had to send: tensors (tensor 'head.bias')",
        2: "had to send: tensors (tensor 'head.bias')",
        3: "had to send: tensors",
        4: "did not finish within 30 s",
        5: "the site's worker died",
        6: "had to send: report",
        7: "could not be read",
    }
    for entry in run.metrics["rounds"]:
        left_out = entry["left_out"]
        if entry["round"] in reasons:
            assert left_out.keys() == {"site-2"}
            assert reasons[entry["round"]] in left_out["site-2"]["sentence"]
            assert f"round {entry['round'] + 1}: site-2 is left out" in run.output
            assert entry["sites"].keys() == {"site-1", "site-3"}
        else:
            assert not left_out
            assert len(entry["sites"]) == 3
    assert len(run.metrics["final"]["sites"]) == 3
    assert not list(run.workspace.rglob("scalars_of_others"))


@pytest.mark.slow
def test_a_killed_worker_host_costs_one_round(tiny, workspace, tmp_path):
    """site-2 loses its worker with the host; the others' workers live on, and site-2 starts a host of its own."""
    job = faulty_job(changed(tiny, federation={"rounds": 3}), tmp_path / "job", {"1": "host dies"}, egress_filter=True)
    run = simulate(job, workspace, "-n", "3", "-t", "3", cwd=tmp_path)
    assert run.exit_code == 0, run.output
    assert [sorted(entry["left_out"]) for entry in run.metrics["rounds"]] == [[], ["site-2"], []]


def test_the_egress_filter_holds_back_what_is_not_allowed(tiny, workspace, shared_host, tmp_path):
    faults = {"0": "extra key", "1": "nan", "2": "extra metric"}
    job = faulty_job(changed(tiny, federation={"rounds": 4}), tmp_path / "job", faults, egress_filter=True)
    run = simulate(job, workspace, "-n", "3", "-t", "3", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    lines = run.ledger("site-2")
    for line, reason in zip(lines, ("not allowed: 'image'", "not finite", "'pixels' is unknown"), strict=False):
        assert reason in line["held_back"]
        assert "tensors" not in line
    assert "held_back" not in lines[3]
    assert lines[3]["tensor_bytes"] > 0
    for entry in run.metrics["rounds"][:3]:
        assert "held back by the egress filter" in entry["left_out"]["site-2"]["sentence"]


@pytest.mark.parametrize("code", ["any", "same"])
def test_a_site_that_runs_other_code(code, tiny, workspace, shared_host, tmp_path):
    experiment = changed(tiny, federation={"code": code})
    job = faulty_job(experiment, tmp_path / "job", {"0": "other code", "1": "other code"}, egress_filter=False)
    run = simulate(job, workspace, "-n", "3", "-t", "3", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    first = run.metrics["rounds"][0]
    if code == "same":
        assert first["left_out"]["site-2"]["code"] == "other_code"
        assert run.output.count("site-2 runs version") == 1
        assert first["sites"].keys() == {"site-1", "site-3"}
        assert len(run.metrics["final"]["sites"]) == 3, "by then it runs the server's"
        return
    assert not first["left_out"]
    assert first["sites"]["site-1"]["code"] == run.metrics["code"] == own_code().model_dump()
    assert first["sites"]["site-2"]["code"] == {**run.metrics["code"], "source": "0" * 16}
    assert run.output.count("site-2 runs version") == 1, "it is said once"


def break_learner_path(job: Path) -> None:
    path = job / "app" / "config" / "config_fed_client.json"
    path.write_text(path.read_text().replace("pt_peft_flare.learner.PeftLearner", "pt_peft_flare.learner.PeftLerner"))


def misspell_field(job: Path) -> None:
    path = job / "app" / "config" / "experiment.json"
    path.write_text(path.read_text().replace('"learning_rate"', '"learning_rat"'))


def pin_other_weights(job: Path) -> None:
    path = job / "app" / "config" / "experiment.json"
    content = json.loads(path.read_text())
    content["backbone"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))


def ask_for_own_images(job: Path) -> None:
    path = job / "app" / "config" / "experiment.json"
    content = json.loads(path.read_text())
    content["data"]["source"] = "site"
    path.write_text(json.dumps(content))


def choose_a_column(job: Path) -> None:
    path = job / "app" / "config" / "experiment.json"
    content = json.loads(path.read_text())
    content["data"] |= {"source": "site", "columns": {"label": "hiv"}}
    path.write_text(json.dumps(content))


def unknown_method(job: Path) -> None:
    path = job / "app" / "config" / "experiment.json"
    content = json.loads(path.read_text())
    content["method"]["name"] = "lroa"
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (break_learner_path, "the job was stopped during task 'train' of round 1, after 0 of 2 results"),
        (misspell_field, "field 'training.learning_rat' is unknown; did you mean 'learning_rate'?"),
        (pin_other_weights, "but the experiment needs 000000"),
        pytest.param(ask_for_own_images, "field 'data.table' is not set", marks=pytest.mark.slow),
        pytest.param(choose_a_column, "field 'data.columns' stands in each site's site.json", marks=pytest.mark.slow),
        pytest.param(unknown_method, "'method.name' is 'lroa', which is unknown", marks=pytest.mark.slow),
    ],
)
def test_a_job_that_does_not_train_ends_non_zero_with_one_sentence(
    tiny, workspace, shared_host, tmp_path, breaks, sentence
):
    write_job(tiny, tmp_path / "job")
    breaks(tmp_path / "job")
    run = simulate(tmp_path / "job", workspace, "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0, run.output
    assert sentence in run.output
    # FLARE itself shows a traceback for a class that it cannot find.
    assert "Traceback" not in run.output or breaks is break_learner_path


@pytest.mark.slow
def test_a_site_that_is_asked_for_a_part_of_its_own_images_gives_nothing(tiny, tiny_weights, shared_host, tmp_path):
    """A hospital's table has a column of sites and one of something else; a job would choose its rows by the first."""
    rows = ["file,label,hiv,site"]
    for index in range(20):
        Image.new("RGB", (40, 40), (10 * index, 0, 0)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{tiny.data.classes[index % 4]},{index % 2},site-{1 + index % 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    own = SiteData(images=str(tmp_path), table=str(tmp_path / "table.csv"), columns=Columns(split=None, site="site"))
    write_workspace(Site(data=own, backbone=str(tiny_weights), cache=str(tmp_path / "c")), tmp_path / "workspace")
    job = changed(tiny, data={"source": "site"}, partition={"kind": "natural"})
    write_job(job, tmp_path / "job")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0, run.output
    assert "field 'data.pooled' must be true with partition.kind 'natural'" in run.output
    assert not any("tensors" in entry for name in ("site-1", "site-2") for entry in run.ledger(name))


def test_a_site_without_its_weights_says_so_and_not_where_they_should_be(tiny, shared_host, tmp_path):
    write_workspace(Site(backbone=str(tmp_path / "private" / "weights.safetensors")), tmp_path / "workspace")
    write_job(tiny, tmp_path / "job")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert "site-1: the site's backbone file cannot be used (field 'backbone');" in run.metrics["reason"]
    assert "private" not in run.metrics["reason"]


def test_too_few_sites(tiny, workspace, shared_host, tmp_path):
    write_job(changed(tiny, federation={"min_sites": 3}), tmp_path / "job")
    run = simulate(tmp_path / "job", workspace, "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert "'federation.min_sites' is 3, but the job has only 2 site(s): site-1, site-2" in run.output


def test_below_the_quorum_the_last_aggregate_is_kept(tiny, workspace, shared_host, tmp_path):
    job = faulty_job(changed(tiny, federation={"rounds": 3}), tmp_path / "job", {"1": "nan"}, egress_filter=False)
    run = simulate(job, workspace, "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert "round 2, task 'train': 1 of 2 sites gave a valid result" in run.output
    assert run.metrics["status"] == "failed"
    assert "site-2: the result is not what the site had to send: tensors (tensor 'head.bias')" in run.metrics["reason"]
    assert load_adapter(run.server / "adapter.safetensors")[1]["round"] == 1
