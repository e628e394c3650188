"""Whole federations in FLARE's simulator."""

import json
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import timm
from helpers import ROOT, Run, changed, simulate
from safetensors.torch import save_file

from benchmark.compare import compare, table
from benchmark.jobs import write_job, write_workspace
from benchmark.reference import federate, load_sites, make_trainer
from pt_peft.adapter_file import load_adapter
from pt_peft.aggregation.trimmed_mean import TrimmedMean
from pt_peft.errors import UserError
from pt_peft.experiment import Experiment
from pt_peft.files import sha256_of
from pt_peft.server_optimizers.adaptive import FedAdam
from pt_peft.site import Site
from pt_peft.tensors import payload_bytes

FAULTY_LEARNER = '''
import os, signal
import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from pt_peft_flare.learner import PeftLearner

class FaultyLearner(PeftLearner):
    """Does what FAULTS says in a round at site-2, and notes other sites' scalars should any come."""

    def handle_event(self, event_type, fl_ctx):
        super().handle_event(event_type, fl_ctx)
        if "analytix" in event_type:
            open("scalars_of_others", "a").write(event_type)

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        fault = FAULTS.get(str(shareable.get_header("current_round"))) if task_name == "train" else None
        if fl_ctx.get_identity_name() != "site-2" or not fault:
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        if fault in ("hang", "die", "host dies"):
            self._open(fl_ctx)
            self._worker.call("exchange")
            if fault == "host dies":
                host = os.getpgid(self._worker._worker.pid)
                os.kill(host, signal.SIGKILL)
            os.kill(self._worker._worker.pid, signal.SIGSTOP if fault == "hang" else signal.SIGKILL)
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        dxo = from_shareable(reply)
        if fault == "nan":
            dxo.data["head.bias"] = dxo.data["head.bias"] * np.nan
        elif fault == "shape":
            dxo.data["head.bias"] = np.zeros(99, np.float32)
        elif fault == "extra key":
            dxo.data["image"] = np.zeros((3, 32, 32), np.float32)
        elif fault == "extra metric":
            dxo.meta["initial_metrics"]["pixels"] = [0.5] * 100
        elif fault == "no dxo":
            return type(reply)()
        updated = dxo.to_shareable()
        updated.set_header("current_round", shareable.get_header("current_round"))
        return updated
'''


def faulty_job(experiment, folder: Path, faults: dict, egress_filter: bool) -> Path:
    """A job whose site-2 misbehaves; without the site's egress filter its faults reach the server."""
    write_job(experiment, folder)
    (folder / "app" / "custom" / "faulty_learner.py").write_text(f"FAULTS = {faults!r}\n" + FAULTY_LEARNER)
    path = folder / "app" / "config" / "config_fed_client.json"
    config = json.loads(path.read_text())
    config["executors"][0]["executor"]["path"] = "faulty_learner.FaultyLearner"
    if not egress_filter:
        config["task_result_filters"] = []
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def site(tiny_weights) -> Site:
    return Site(backbone=str(tiny_weights))


@pytest.fixture(scope="session")
def finished(tiny, site, shared_host, tmp_path_factory) -> Run:
    """A run that ended well, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    write_workspace(site, folder / "workspace")
    write_job(tiny, folder / "job")
    run = simulate(folder / "job", folder / "workspace", "-n", "2", "-t", "2", cwd=folder, host=shared_host)
    assert run.exit_code == 0, run.output
    return run


@pytest.fixture
def workspace(site, tmp_path) -> Path:
    write_workspace(site, tmp_path / "workspace")
    return tmp_path / "workspace"


def assert_equal(adapter: Path, expected: dict) -> None:
    tensors, _ = load_adapter(adapter)
    assert tensors.keys() == expected.keys()
    assert max(float(np.abs(tensors[key] - expected[key]).max()) for key in expected) <= 1e-6


def test_the_literal_command(tmp_path):
    """From a folder of its own with no flags; the job folder is a copy, the code is the installed package."""
    shutil.copytree(ROOT / "jobs" / "lora_vpt", tmp_path / "lora_vpt")
    run = simulate(Path("lora_vpt"), None, cwd=tmp_path)
    assert run.exit_code == 0, run.output
    for path in ("adapter.safetensors", "best_adapter.safetensors", "metrics.json", "tb_events"):
        assert (run.server / path).exists() and str(run.server / path) in run.output
    metrics = run.metrics
    assert metrics["status"] == "finished" and len(metrics["rounds"]) == 3
    assert metrics["final"]["test"]["pooled"]["balanced_accuracy"] >= 0.8
    tensors, header = load_adapter(run.server / "adapter.safetensors")
    assert header["round"] == 3 and header["model"]["method"]["name"] == "lora_vpt"
    assert header["metrics"]["test"] == metrics["final"]["test"]

    # What left a site is what the experiment exchanges, tensor by tensor, and nothing else.
    for name in ("site-1", "site-2"):
        lines = run.ledger(name)
        assert [line["task"] for line in lines] == ["train"] * 3 + ["validate"]
        for line in lines[:3]:
            assert line["tensors"].keys() == tensors.keys()
            assert line["tensor_bytes"] == payload_bytes(tensors) == metrics["exchanged"]["bytes"]
        assert lines[3]["tensor_bytes"] == 0


def test_curves_are_readable(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = {"train/loss", "val/loss", "val/accuracy", "val/balanced_accuracy", "val/auroc", "seconds", "bytes/in", "bytes/out"}
    for name in ("site-1", "site-2", "global"):
        events = EventAccumulator(str(finished.server / "tb_events" / name)).Reload()
        tags = set(events.Tags()["scalars"])
        if name == "global":
            assert {"train/loss", "val/pooled_balanced_accuracy", "test/mean_auroc"} <= tags
            continue
        assert wanted <= tags
        final = finished.metrics["final"]["sites"][name]["val"]["balanced_accuracy"]
        points = events.Scalars("val/balanced_accuracy")
        assert [point.step for point in points] == [0, 1, 2] and points[-1].value == pytest.approx(final)


def test_the_record_adds_up(finished):
    """The pooled metrics are those of the sites' confusion matrices together, and so are the comparison's own."""
    final = finished.metrics["final"]
    matrices = [np.array(final["sites"][name]["test"]["confusion"]) for name in ("site-1", "site-2")]
    pooled = sum(matrices)
    recalls = np.diag(pooled) / pooled.sum(axis=1)
    assert final["test"]["pooled"]["balanced_accuracy"] == pytest.approx(recalls.mean())
    best = finished.metrics["best"]
    assert best["rounds"] in (1, 2)

    result = compare([finished.workspace], baselines=True, jobs=1)
    rows = {row["name"]: row["test"] for row in result["rows"]}
    assert rows.keys() == {"federated lora_vpt", "pooled", "local site-1", "local site-2", "majority class"}
    federated = rows["federated lora_vpt"]
    assert federated["pooled"]["confusion"] == pooled.tolist()
    for name in ("site-1", "site-2"):
        assert federated[name]["auroc"] == pytest.approx(final["sites"][name]["test"]["auroc"])
    assert rows["majority class"]["pooled"]["balanced_accuracy"] == 0.25
    assert len({json.dumps(row["pooled"]["loss"]) for name, row in rows.items() if name != "majority class"}) == 4
    assert "| federated lora_vpt |" in table(result)


@pytest.mark.parametrize("threads", [pytest.param("1", marks=pytest.mark.slow), "3"])
def test_equal_to_the_oracle_whatever_the_number_of_threads(threads, tiny, site, shared_host, tmp_path):
    names = ["site-1", "site-2", "site-3"]
    expected = federate(make_trainer(tiny, site), load_sites(tiny, site, names)).tensors
    write_job(tiny, tmp_path / "job")
    write_workspace(site, tmp_path / "workspace")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "3", "-t", threads, cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    assert_equal(run.server / "adapter.safetensors", expected)


def test_other_ways_to_aggregate_are_equal_to_the_oracle_too(tiny, site, workspace, shared_host, tmp_path):
    experiment = changed(
        tiny, training={"proximal": 0.1}, federation={"min_sites": 3},
    ).model_copy(update={"aggregation": TrimmedMean(name="trimmed_mean"), "server_optimizer": FedAdam(name="fedadam")})  # fmt: skip
    names = ["site-1", "site-2", "site-3"]
    expected = federate(make_trainer(experiment, site), load_sites(experiment, site, names)).tensors
    plain = federate(make_trainer(tiny, site), load_sites(tiny, site, names)).tensors
    assert max(np.abs(expected[key] - plain[key]).max() for key in expected) > 1e-3, "else the test says little"
    write_job(experiment, tmp_path / "job")
    run = simulate(tmp_path / "job", workspace, "-n", "3", "-t", "3", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    assert_equal(run.server / "adapter.safetensors", expected)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "3"])
def test_rounded_payloads_are_equal_to_the_oracle_too(threads, tiny, site, workspace, shared_host, tmp_path):
    """With one thread every task finds a new process at its site, which goes on from what the last one could not send."""
    int8 = {"name": "int8"}
    experiment = changed(tiny, payload={"up": int8, "down": int8}, federation={"rounds": 3, "lora_ranks": {"site-3": 2}})
    names = ["site-1", "site-2", "site-3"]
    trainer, sites = make_trainer(experiment, site), load_sites(experiment, site, names)
    expected = federate(trainer, sites)
    write_job(experiment, tmp_path / "job")
    run = simulate(tmp_path / "job", workspace, "-n", "3", "-t", threads, cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    assert_equal(run.server / "adapter.safetensors", expected.tensors)

    codec = experiment.payload.up
    for name in names:
        specs = codec.specs(trainer.exchange.at_rank(experiment.federation.lora_ranks.get(name)).sent(0))
        nbytes = sum(spec.nbytes for spec in specs.values())
        lines = [line for line in run.ledger(name) if line["task"] == "train"]
        assert len(lines) == 3
        for line in lines:
            assert line["tensor_bytes"] == nbytes and 0 < line["l2_norm"] < 1, "the norm is that of a change"
            left = {key: (tuple(one["shape"]), one["dtype"]) for key, one in line["tensors"].items()}
            assert left == {key: (spec.shape, spec.dtype) for key, spec in specs.items()}
        for entry in run.metrics["rounds"]:
            assert entry["sites"][name]["bytes_in"] == entry["sites"][name]["bytes_out"] == nbytes
        kept, _ = load_adapter(run.workspace / name / "simulate_job" / "local_adapter.safetensors")
        unsent = {key: value for key, value in expected.kept[name].items() if key.startswith("unsent/")}
        assert unsent and all(np.allclose(kept[key], value, atol=1e-6) for key, value in unsent.items())

    # What the sites have evaluated is what they were sent of the final adapter.
    read = codec.decode(codec.encode(expected.tensors), trainer.exchange.sent(0))
    loss = trainer.evaluate(read, sites["site-1"].test)["loss"]
    assert run.metrics["final"]["sites"]["site-1"]["test"]["loss"] == pytest.approx(loss, abs=1e-5)


@pytest.fixture(scope="session")
def four_blocks(tiny, tmp_path_factory) -> tuple[Experiment, Site]:
    """Six rounds on a ViT of four blocks."""
    kwargs = {**tiny.backbone.kwargs, "depth": 4}
    weights = tmp_path_factory.mktemp("weights") / "four.safetensors"
    save_file(timm.create_model(tiny.backbone.name, img_size=32, num_classes=0, **kwargs).state_dict(), weights)
    backbone = {"kwargs": kwargs, "sha256": sha256_of(weights)}
    return changed(tiny, backbone=backbone, federation={"rounds": 6}), Site(backbone=str(weights))


@pytest.mark.parametrize(
    ("threads", "head"), [pytest.param("1", "exchanged", marks=pytest.mark.slow), ("3", "frozen")]
)
def test_stochastic_block_attention_with_a_site_that_misses_rounds(threads, head, four_blocks, shared_host, tmp_path):
    """With one thread every task also finds a new process at its site; with a frozen head nothing is sent in round 1."""
    experiment, site = four_blocks
    experiment = changed(experiment, method={"name": "sba", "options": {}, "head": head})
    names, missed = ["site-1", "site-2", "site-3"], {("site-2", 1), ("site-2", 2)}
    trainer = make_trainer(experiment, site)
    exchange = trainer.exchange
    assert len({*exchange.rotating}) >= 3, "else the test says little"
    expected = federate(trainer, load_sites(experiment, site, names), absent=missed).tensors

    job = faulty_job(experiment, tmp_path / "job", {"1": "die", "2": "nan"}, egress_filter=True)
    write_workspace(site, tmp_path / "workspace")
    run = simulate(job, tmp_path / "workspace", "-n", "3", "-t", threads, cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    assert [sorted(entry["left_out"]) for entry in run.metrics["rounds"]] == [[], ["site-2"], ["site-2"], [], [], []]
    assert_equal(run.server / "adapter.safetensors", expected)

    for name in names:
        lines = [line for line in run.ledger(name) if line["task"] == "train" and "tensors" in line]
        assert len(lines) == (4 if name == "site-2" else 6)
        assert all(line["tensors"].keys() == exchange.trained(line["round"]).keys() for line in lines)

    def nbytes(since, number):
        return sum(spec.nbytes for spec in exchange.payload(since, number).values())

    for entry in run.metrics["rounds"]:
        number = entry["round"]
        for name, report in entry["sites"].items():
            missed_before = name == "site-2" and number == 3
            assert report["bytes_in"] == (nbytes(0, 3) if missed_before else nbytes(max(number - 1, 0), number))
            assert report["bytes_out"] == sum(spec.nbytes for spec in exchange.trained(number).values())


def test_a_local_head_stays_at_its_site(tiny, site, workspace, shared_host, tmp_path):
    experiment = changed(tiny, method={"name": "lora", "options": {}, "head": "local"}, federation={"rounds": 3})
    names = ["site-1", "site-2"]
    trainer, sites = make_trainer(experiment, site), load_sites(experiment, site, names)
    expected = federate(trainer, sites)
    write_job(experiment, tmp_path / "job")
    run = simulate(tmp_path / "job", workspace, "-n", "2", "-t", "1", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    assert_equal(run.server / "adapter.safetensors", expected.tensors)
    assert not any("head" in key for key in expected.tensors)
    for name in names:
        assert not any("head" in key for line in run.ledger(name) for key in line.get("tensors", ()))
        own, header = load_adapter(run.workspace / name / "simulate_job" / "local_adapter.safetensors")
        assert all(np.allclose(own[key], value, atol=1e-6) for key, value in expected.kept[name].items())
        assert header["model"]["method"]["head"] == "local"
        metrics = trainer.evaluate({**expected.tensors, **expected.kept[name]}, sites[name].test)
        assert run.metrics["final"]["sites"][name]["test"]["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    assert not np.array_equal(*(expected.kept[name]["head.weight"] for name in names))
    with pytest.raises(UserError, match="'method.head' is 'local'"):
        compare([run.workspace], baselines=False, jobs=1)


def test_a_bundled_job_needs_no_installed_package(tiny, workspace, tmp_path):
    """In an environment that has everything but our packages."""
    venv.create(tmp_path / "bare")
    python = tmp_path / "bare" / "bin" / "python"
    packages = next((tmp_path / "bare" / "lib").iterdir()) / "site-packages"
    # A line of a .pth file adds a folder without reading that folder's own .pth files: not those of editable installs.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert subprocess.run([python, "-c", "import pt_peft"], cwd=tmp_path, capture_output=True).returncode != 0
    write_job(tiny, tmp_path / "job", bundle=True)
    nvflare = (str(python), "-c", "from nvflare.cli import main; main()")
    run = simulate(tmp_path / "job", workspace, "-n", "2", "-t", "2", cwd=tmp_path, nvflare=nvflare)
    assert run.exit_code == 0, run.output
    assert run.metrics["status"] == "finished"


def test_faults_cost_their_site_the_round(tiny, workspace, shared_host, tmp_path):
    """At the server, as the site's own filter is left out of this job."""
    faults = {"1": "nan", "2": "shape", "3": "extra key", "4": "hang", "5": "die", "6": "extra metric", "7": "no dxo"}
    experiment = changed(tiny, federation={"rounds": 9, "site_timeout_s": 30})
    job = faulty_job(experiment, tmp_path / "job", faults, egress_filter=False)
    run = simulate(job, workspace, "-n", "3", "-t", "3", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    reasons = {
        1: "'head.bias' has 4 value(s) that are not finite",
        2: "'head.bias' has shape (99,), not (4,)",
        3: "not allowed: 'image'",
        4: "did not finish train within 30 s",
        5: "died during train",
        6: "'pixels' is unknown",
        7: "could not be read",
    }
    for entry in run.metrics["rounds"]:
        left_out = entry["left_out"]
        if entry["round"] in reasons:
            assert left_out.keys() == {"site-2"} and reasons[entry["round"]] in left_out["site-2"]
            assert f"round {entry['round'] + 1}: site-2 is left out" in run.output
            assert entry["sites"].keys() == {"site-1", "site-3"}
        else:
            assert not left_out and len(entry["sites"]) == 3
    assert len(run.metrics["final"]["sites"]) == 3
    assert not list(run.workspace.rglob("scalars_of_others"))


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
        assert reason in line["held_back"] and "tensors" not in line
    assert "held_back" not in lines[3] and lines[3]["tensor_bytes"] > 0
    for entry in run.metrics["rounds"][:3]:
        assert "held back by the egress filter" in entry["left_out"]["site-2"]


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


def ask_for_npz(job: Path) -> None:
    path = job / "app" / "config" / "experiment.json"
    content = json.loads(path.read_text())
    content["data"]["source"] = "npz"
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
        pytest.param(ask_for_npz, "field 'data.npz' is not set", marks=pytest.mark.slow),
        pytest.param(unknown_method, "'method.name' is 'lroa', which is unknown", marks=pytest.mark.slow),
    ],
)
def test_a_job_that_does_not_train_ends_non_zero_with_one_sentence(tiny, workspace, shared_host, tmp_path, breaks, sentence):
    write_job(tiny, tmp_path / "job")
    breaks(tmp_path / "job")
    run = simulate(tmp_path / "job", workspace, "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0, run.output
    assert sentence in run.output
    # FLARE itself shows a traceback for a class that it cannot find.
    assert "Traceback" not in run.output or breaks is break_learner_path


def test_a_site_without_its_weights_says_so_and_not_where_they_should_be(tiny, shared_host, tmp_path):
    write_workspace(Site(backbone=str(tmp_path / "private" / "weights.safetensors")), tmp_path / "workspace")
    write_job(tiny, tmp_path / "job")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert "site-1: site.json: field 'backbone' is …, which does not exist" in run.metrics["reason"]


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
    assert run.metrics["status"] == "failed" and "site-2: tensor 'head.bias'" in run.metrics["reason"]
    assert load_adapter(run.server / "adapter.safetensors")[1]["round"] == 1
