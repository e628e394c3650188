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
from safetensors.torch import save_file

from benchmark.measurements.compare import compare, table
from benchmark.oracle.reference import federate, load_sites, make_trainer
from faulty import faulty_job
from helpers import ROOT, Run, assert_equal, changed, simulate
from pt_peft.errors import UserError
from pt_peft.exchange.aggregation.trimmed_mean import TrimmedMean
from pt_peft.exchange.server_optimizers.adaptive import FedAdam
from pt_peft.exchange.tensors import payload_bytes
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.export.adapter import open_adapter
from pt_peft.federation.local_round import at_site_rank, own_model, starting_model
from pt_peft.files import sha256_of
from pt_peft.model.adapter_file import load_adapter
from pt_peft.worker.host_process import WorkerHost
from pt_peft_flare.__main__ import main
from pt_peft_flare.job_folder import write_job, write_workspace


def run_to_the_end(experiment: Experiment, folder: Path, sites: int, threads: str, host: WorkerHost) -> Run:
    """The experiment's job in ``folder/workspace``, which is there; it must succeed."""
    write_job(experiment, folder / "job")
    run = simulate(folder / "job", folder / "workspace", "-n", str(sites), "-t", threads, cwd=folder, host=host)
    assert run.exit_code == 0, run.output
    return run


def approx_reported(loss: float):
    """A loss as a report gives it: to four significant digits, of losses below ten."""
    return pytest.approx(loss, abs=6e-4)


@pytest.fixture(scope="session")
def finished(tiny, site, shared_host, tmp_path_factory) -> Run:
    """A run that ended well, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    write_workspace(site, folder / "workspace")
    return run_to_the_end(tiny, folder, 2, threads="2", host=shared_host)


def test_the_literal_command(tmp_path):
    """From a folder of its own with no flags; the job folder is a copy, the code is the installed package."""
    shutil.copytree(ROOT / "jobs" / "lora_vpt", tmp_path / "lora_vpt")
    run = simulate(Path("lora_vpt"), None, cwd=tmp_path)
    assert run.exit_code == 0, run.output
    for path in ("adapter.safetensors", "best_adapter.safetensors", "metrics.json", "tb_events"):
        assert (run.server / path).exists()
        assert str(run.server / path) in run.output
    assert "Late stream error" not in run.output, "a site began anew before the end was told"
    metrics = run.metrics
    assert metrics["status"] == "finished"
    assert len(metrics["rounds"]) == 3
    assert metrics["final"]["test"]["pooled"]["balanced_accuracy"] >= 0.8
    tensors, header = load_adapter(run.server / "adapter.safetensors")
    assert header["round"] == 3
    assert header["model"]["method"]["name"] == "lora_vpt"
    assert header["metrics"]["test"] == metrics["final"]["test"]
    assert header["learnt_prevalence"] == "training"
    assert (header["class_counts"]["split"], header["class_counts"]["images"]) == ("val", 256)

    # What left a site is what the experiment exchanges, tensor by tensor, and nothing else.
    for name in ("site-1", "site-2"):
        lines = run.ledger(name)
        assert [line["task"] for line in lines] == ["train"] * 3 + ["validate"]
        for line in lines[:3]:
            assert line["tensors"].keys() == tensors.keys()
            assert line["tensor_bytes"] == payload_bytes(tensors) == metrics["exchanged"]["bytes"]
        assert lines[3]["tensor_bytes"] == 0
        asked = run.asked(name)
        assert asked["exchange"]["tensors"] == sorted(tensors)
        assert asked["exchange"]["bytes_up"] == lines[0]["tensor_bytes"]
        assert asked["images"]["train"] == metrics["rounds"][0]["sites"][name]["num_samples"]
        assert asked["deployment"] == {"everyone": True, "sites": ["site-1", "site-2"], "other_apps": {}}
        assert asked["refused"] == []


def test_curves_are_what_the_record_says(finished):
    """As `tensorboard --logdir workspace` finds them: a run for each site beside one for the federation."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    folder = "server/simulate_job/tb_events"
    events = EventMultiplexer().AddRunsFromDirectory(str(finished.workspace)).Reload()
    names = ("site-1", "site-2", "global")
    assert set(events.Runs()) == {f"{folder}/{name}" for name in names}
    for name in names:
        tags = set(events.Runs()[f"{folder}/{name}"]["scalars"])
        shared = {"train/loss", "time/round_s", "bytes/in", "bytes/out", "val/loss", "val/auroc", "val_auroc/a"}
        assert shared <= tags
        points = events.Scalars(f"{folder}/{name}", "val/balanced_accuracy")
        assert [point.step for point in points] == [0, 1, 2]
        final = finished.metrics["final"]
        metrics = final["val"]["mean"] if name == "global" else final["sites"][name]["val"]
        assert points[-1].value == pytest.approx(metrics["balanced_accuracy"])
        assert {"confusion/val", "confusion/test"} == set(events.Runs()[f"{folder}/{name}"]["images"])
    (pooled,) = events.Scalars(f"{folder}/global", "test_pooled/balanced_accuracy")
    assert pooled.value == pytest.approx(finished.metrics["final"]["test"]["pooled"]["balanced_accuracy"])


def test_flares_own_files_say_what_the_record_says(finished):
    """As `nvflare job download` lists them: means over sites that weigh the same."""
    folder, metrics = finished.server / "metrics", finished.metrics
    lines = [json.loads(line) for line in (folder / "round_metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1]
    for line, entry in zip(lines, metrics["rounds"], strict=True):
        told = {one["name"]: one["value"] for one in line["aggregated_metrics"]}
        mean = {f"val/{name}": value for name, value in entry["val_at_start"]["mean"].items() if value is not None}
        losses = [report["train_loss"] for report in entry["sites"].values()]
        assert told == {**mean, "train/loss": pytest.approx(sum(losses) / 2)}
        for site in line["sites"]:
            own = {one["name"]: one["value"] for one in site["metrics"]}
            assert own["val/auroc"] == entry["sites"][site["name"]]["val"]["auroc"]
            assert (own["train/loss"], site["weight"]) == (entry["sites"][site["name"]]["train_loss"], 1)
        assert not line["skipped_metrics"]
    summary, best = json.loads((folder / "metrics_summary.json").read_text()), metrics["best"]
    assert (summary["final_round"], summary["best_round"]) == (1, best["rounds"])
    assert summary["final_aggregated_metrics"] == lines[1]["aggregated_metrics"]
    assert summary["key_metric"] == {"name": "val/balanced_accuracy", "mode": "max", "mode_source": "select_by"}
    told = {one["name"]: one["value"] for one in summary["best_metrics"]}
    assert told["val/balanced_accuracy"] == best["val"]["mean"]["balanced_accuracy"]


def test_the_record_adds_up(finished):
    """The pooled metrics are those of the sites' confusion matrices together, and so are the comparison's own."""
    final = finished.metrics["final"]
    matrices = [np.array(final["sites"][name]["test"]["confusion"]) for name in ("site-1", "site-2")]
    pooled = np.sum(matrices, axis=0)
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
        assert federated[name]["auroc"] == pytest.approx(final["sites"][name]["test"]["auroc"], abs=1e-4)
    assert rows["majority class"]["pooled"]["balanced_accuracy"] == 0.25
    assert len({json.dumps(row["pooled"]["loss"]) for name, row in rows.items() if name != "majority class"}) == 4
    assert "| federated lora_vpt |" in table(result)


def test_the_server_counts_what_the_ledgers_say(finished):
    for name in ("site-1", "site-2"):
        folder = finished.workspace / name / "simulate_job"
        assert main(["ledger", str(folder), "--verify", str(finished.server / "metrics.json")]) == 0


@pytest.mark.parametrize("threads", [pytest.param("1", marks=pytest.mark.slow), "3"])
def test_equal_to_the_oracle_whatever_the_number_of_threads(threads, tiny, site, shared_host, tmp_path):
    names = ["site-1", "site-2", "site-3"]
    expected = federate(make_trainer(tiny, site), load_sites(tiny, site, names)).tensors
    write_workspace(site, tmp_path / "workspace")
    run = run_to_the_end(tiny, tmp_path, 3, threads=threads, host=shared_host)
    assert_equal(run.server / "adapter.safetensors", expected)


def test_other_ways_to_aggregate_are_equal_to_the_oracle_too(tiny, site, workspace, shared_host, tmp_path):
    other = {"aggregation": TrimmedMean(name="trimmed_mean"), "server_optimizer": FedAdam(name="fedadam")}
    experiment = changed(tiny, training={"proximal": 0.1}, federation={"min_sites": 3}).model_copy(update=other)
    names = ["site-1", "site-2", "site-3"]
    expected = federate(make_trainer(experiment, site), load_sites(experiment, site, names)).tensors
    plain = federate(make_trainer(tiny, site), load_sites(tiny, site, names)).tensors
    assert max(np.abs(expected[key] - plain[key]).max() for key in expected) > 1e-3, "else the test says little"
    run = run_to_the_end(experiment, tmp_path, 3, threads="3", host=shared_host)
    assert_equal(run.server / "adapter.safetensors", expected)


def test_a_closed_form_before_and_after_the_rounds_is_equal_to_the_oracle_too(
    tiny, site, workspace, shared_host, tmp_path
):
    experiment = changed(tiny, head={"start": "ridge", "finish": "ridge"})
    names = ["site-1", "site-2"]
    expected = federate(make_trainer(experiment, site), load_sites(experiment, site, names)).tensors
    run = run_to_the_end(experiment, tmp_path, 2, threads="2", host=shared_host)
    assert_equal(run.server / "adapter.safetensors", expected)
    header = load_adapter(run.server / "adapter.safetensors")[1]
    assert header["head"] == run.metrics["statistics"][-1]["head"]
    assert [line["task"] for line in run.ledger("site-1")] == [
        *["statistics"] * 3, "train", "train", *["statistics"] * 3, "validate",
    ]  # fmt: skip
    assert (
        main(["ledger", str(run.workspace / "site-1" / "simulate_job"), "--verify", str(run.server / "metrics.json")])
        == 0
    )


def test_what_sites_keep_to_themselves(tiny, site, workspace, shared_host, tmp_path):
    """Mixed ranks, SCAFFOLD and Ditto at once. With one thread each task gets a new process at its site."""
    experiment = changed(
        tiny,
        training={"control_variates": True, "ditto": 0.1},
        method={"roles": {"*.prompts": "local"}},
        federation={"lora_ranks": {"site-1": 2}},
    )
    names = ["site-1", "site-2"]
    trainer, sites = make_trainer(experiment, site), load_sites(experiment, site, names)
    expected = federate(trainer, sites)
    run = run_to_the_end(experiment, tmp_path, 2, threads="1", host=shared_host)
    assert_equal(run.server / "adapter.safetensors", expected.tensors)
    assert all(0 < entry["lora_deviation"] < 1 for entry in run.metrics["rounds"])
    for name in names:
        own, _ = load_adapter(run.workspace / name / "simulate_job" / "local_adapter.safetensors")
        kept = expected.kept[name]
        assert all(np.allclose(own[key], value, atol=1e-6) for key, value in kept.items())
        reported = run.metrics["final"]["sites"][name]
        model = starting_model(trainer, at_site_rank(trainer, name, expected.tensors), kept)
        assert reported["test"]["loss"] == approx_reported(trainer.evaluate(model, sites[name].test)["loss"])
        ditto = own_model(kept)
        assert reported["own_test"]["loss"] == approx_reported(trainer.evaluate(ditto, sites[name].test)["loss"])
        taken_home, _, _ = open_adapter(
            run.workspace / name / "simulate_job" / "own_adapter.safetensors", Path(site.backbone)
        )
        assert all(np.allclose(value, ditto[key], atol=1e-6) for key, value in taken_home.state().items())
        sent = run.ledger(name)[0]["tensors"]
        assert {tuple(entry["shape"]) for key, entry in sent.items() if key.endswith("lora_A")} == {
            (2 if name == "site-1" else 4, 32)
        }
        assert not any("prompts" in key for key in sent)
        assert run.metrics["rounds"][0]["sites"][name]["bytes_out"] == sum(entry["bytes"] for entry in sent.values())


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "3"])
def test_rounded_payloads_are_equal_to_the_oracle_too(threads, tiny, site, workspace, shared_host, tmp_path):
    """With one thread each task finds a new process at its site, which goes on from what the last could not send."""
    int8 = {"name": "int8"}
    experiment = changed(
        tiny, payload={"up": int8, "down": int8}, federation={"rounds": 3, "lora_ranks": {"site-3": 2}}
    )
    names = ["site-1", "site-2", "site-3"]
    trainer, sites = make_trainer(experiment, site), load_sites(experiment, site, names)
    expected = federate(trainer, sites)
    run = run_to_the_end(experiment, tmp_path, 3, threads=threads, host=shared_host)
    assert_equal(run.server / "adapter.safetensors", expected.tensors)

    codec = experiment.payload.up
    for name in names:
        specs = codec.specs(trainer.exchange.at_rank(experiment.federation.lora_ranks.get(name)).up(0))
        nbytes = sum(spec.nbytes for spec in specs.values())
        lines = [line for line in run.ledger(name) if line["task"] == "train"]
        assert len(lines) == 3
        for line in lines:
            assert line["tensor_bytes"] == nbytes
            assert 0 < line["l2_norm"] < 1, "the norm is that of a change"
            left = {key: (tuple(one["shape"]), one["dtype"]) for key, one in line["tensors"].items()}
            assert left == {key: (spec.shape, spec.dtype) for key, spec in specs.items()}
        for entry in run.metrics["rounds"]:
            assert entry["sites"][name]["bytes_in"] == entry["sites"][name]["bytes_out"] == nbytes
        kept, _ = load_adapter(run.workspace / name / "simulate_job" / "local_adapter.safetensors")
        unsent = {key: value for key, value in expected.kept[name].items() if key.startswith("unsent/")}
        assert unsent
        assert all(np.allclose(kept[key], value, atol=1e-6) for key, value in unsent.items())

        folder = run.workspace / name / "simulate_job"
        assert main(["ledger", str(folder), "--verify", str(run.server / "metrics.json")]) == 0

    # What the sites have evaluated is what they were sent of the final adapter.
    read = codec.decode(codec.encode(expected.tensors), trainer.exchange.up(0))
    loss = trainer.evaluate(read, sites["site-1"].test)["loss"]
    assert run.metrics["final"]["sites"]["site-1"]["test"]["loss"] == approx_reported(loss)


@pytest.fixture(scope="session")
def four_blocks(tiny, tmp_path_factory) -> tuple[Experiment, Site]:
    """Six rounds on a ViT of four blocks."""
    kwargs = {**tiny.backbone.kwargs, "depth": 4}
    weights = tmp_path_factory.mktemp("weights") / "four.safetensors"
    save_file(timm.create_model(tiny.backbone.name, img_size=32, num_classes=0, **kwargs).state_dict(), weights)
    backbone = {"kwargs": kwargs, "sha256": sha256_of(weights)}
    return changed(tiny, backbone=backbone, federation={"rounds": 6}), Site(limits=Limits.open(), backbone=str(weights))


@pytest.mark.parametrize(
    ("threads", "head", "optimizer"),
    [
        pytest.param("1", "exchanged", {"name": "none"}, marks=pytest.mark.slow),
        ("3", "frozen", {"name": "swa", "last_rounds": 4}),
    ],
)
def test_stochastic_block_attention_with_a_site_that_misses_rounds(
    threads, head, optimizer, four_blocks, shared_host, tmp_path
):
    """With one thread each task also finds a new process at its site; with a frozen head round 1 sends nothing.

    The mean of the last rounds changes tensors that no site has trained in the last one.
    """
    experiment, site = four_blocks
    method, training = {"name": "sba", "options": {}, "head": head}, {"learning_rate": 0.01}
    experiment = changed(experiment, method=method, training=training, server_optimizer=optimizer)
    names, missed = ["site-1", "site-2", "site-3"], {("site-2", 1), ("site-2", 2)}
    trainer = make_trainer(experiment, site)
    exchange = trainer.exchange
    assert len({*exchange.rotating}) >= 3, "else the test says little"
    sites = load_sites(experiment, site, names)
    expected = federate(trainer, sites, absent=missed).tensors

    job = faulty_job(experiment, tmp_path / "job", {"1": "die", "2": "nan"}, egress_filter=True)
    write_workspace(site, tmp_path / "workspace")
    run = simulate(job, tmp_path / "workspace", "-n", "3", "-t", threads, cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    assert [sorted(entry["left_out"]) for entry in run.metrics["rounds"]] == [[], ["site-2"], ["site-2"], [], [], []]
    assert_equal(run.server / "adapter.safetensors", expected)
    loss = trainer.evaluate(expected, sites["site-1"].test)["loss"]
    assert run.metrics["final"]["sites"]["site-1"]["test"]["loss"] == approx_reported(loss)

    for name in names:
        lines = [line for line in run.ledger(name) if line["task"] == "train" and "tensors" in line]
        assert len(lines) == (4 if name == "site-2" else 6)
        assert all(line["tensors"].keys() == exchange.trained(line["round"]).keys() for line in lines)

    def nbytes(since, number):
        return sum(spec.nbytes for spec in exchange.down(since, number).values())

    for entry in run.metrics["rounds"]:
        number = entry["round"]
        for name, report in entry["sites"].items():
            missed_before = name == "site-2" and number == 3
            assert report["bytes_in"] == (nbytes(0, 3) if missed_before else nbytes(max(number - 1, 0), number))
            assert report["bytes_out"] == sum(spec.nbytes for spec in exchange.trained(number).values())


@pytest.mark.slow
def test_a_local_head_stays_at_its_site(tiny, site, workspace, shared_host, tmp_path):
    experiment = changed(tiny, method={"name": "lora", "options": {}, "head": "local"}, federation={"rounds": 3})
    names = ["site-1", "site-2"]
    trainer, sites = make_trainer(experiment, site), load_sites(experiment, site, names)
    expected = federate(trainer, sites)
    run = run_to_the_end(experiment, tmp_path, 2, threads="1", host=shared_host)
    assert_equal(run.server / "adapter.safetensors", expected.tensors)
    assert not any("head" in key for key in expected.tensors)
    for name in names:
        assert not any("head" in key for line in run.ledger(name) for key in line.get("tensors", ()))
        own, header = load_adapter(run.workspace / name / "simulate_job" / "local_adapter.safetensors")
        assert all(np.allclose(own[key], value, atol=1e-6) for key, value in expected.kept[name].items())
        assert header["model"]["method"]["head"] == "local"
        metrics = trainer.evaluate({**expected.tensors, **expected.kept[name]}, sites[name].test)
        assert run.metrics["final"]["sites"][name]["test"]["loss"] == approx_reported(metrics["loss"])
    first, second = (expected.kept[name]["head.weight"] for name in names)
    assert not np.array_equal(first, second)
    with pytest.raises(UserError, match=r"'method\.head' makes tensors 'local'"):
        compare([run.workspace], baselines=False, jobs=1)


def test_a_bundled_job_needs_no_installed_package(tiny, workspace, tmp_path, monkeypatch):
    """In an environment that has everything but our packages."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
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
