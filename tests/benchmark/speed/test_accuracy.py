"""Seconds that buy accuracy: that all contenders do the task, and what is said of it."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmark.oracle.reference import make_trainer
from benchmark.speed.accuracy import __main__ as accuracy
from benchmark.speed.accuracy.contenders import LEVERLESS, contenders
from benchmark.speed.accuracy.curves import Point, median, reached
from benchmark.speed.accuracy.learner import Learner
from benchmark.speed.accuracy.snapshots import Snapshots
from benchmark.speed.accuracy.stock_net import Net
from benchmark.speed.accuracy.task import Task, ham10000_sites, load_checkpoint, load_trained
from benchmark.speed.flare_stock.adapters import Adapters
from benchmark.speed.measure import measure, private_loopback, python_path
from helpers import changed
from pt_peft.data.sources import site_images
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of

NAMES = ["north", "south"]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    """A few generated lesions of 32 pixels and a ViT-Tiny of random weights."""
    from pt_peft.presets import demo

    folder = tmp_path_factory.mktemp("accuracy")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    save_file(model.state_dict(), folder / "weights.safetensors")
    experiment = changed(
        demo("lora_vpt")[0],
        backbone={
            "name": "vit_tiny_patch16_224", "kwargs": {}, "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3,
            "sha256": sha256_of(folder / "weights.safetensors"),
        },
        data={"images_per_site": {"train": 48, "val": 24, "test": 32}},
        method={"options": {"lora": {"alpha": 8.0}, "vpt_deep": {"num_prompts": 4}}},
        training={"batch_size": 16, "imbalance": "balanced_softmax", "precision": "auto"},
        federation={"rounds": 2, "sites": NAMES, "min_sites": 2},
    )  # fmt: skip
    site = Site(backbone=str(folder / "weights.safetensors"), limits=Limits.open())
    return Task.write(experiment, site, folder / "task")


def point(seconds: float, val: float, wire_bytes: int | None = 10) -> Point:
    return {"seconds": seconds, "wire_bytes": wire_bytes, "val": val}


def test_when_a_target_is_reached():
    curve = [point(1, 0.4), point(2, 0.7, 20), point(3, 0.6, 30)]
    assert reached(curve, 0.65) == {"seconds": 2, "megabytes": 20e-6}
    assert reached(curve, 0.71) is None
    runs = [reached(curve, 0.65), reached([point(6, 0.7, None)], 0.65), reached([point(4, 0.65, 40)], 0.65)]
    assert median(runs) == {"seconds": 4, "megabytes": None}
    assert (median([*runs, None]), median([])) == (None, None)
    runs = [{"curve": curve, "test": 0.5}, {"curve": [point(5, 0.62, 7)], "test": 0.52}]
    found = accuracy.row("a loop", runs)
    assert found["targets"]["val_60"] == {"seconds": 3.5, "megabytes": pytest.approx(13.5e-6)}
    assert found["targets"]["val_65"] is None
    assert found["targets"]["final"] == found["targets"]["val_60"]
    shown = accuracy.table({"x": found}).splitlines()[2].replace("\N{EN DASH}", "-")
    assert shown == "| a loop | 3.5 | 0.0 | - | - | 3.5 | 0.0 | 0.610 | 0.510 |"


def test_every_version_of_a_file_is_kept_with_its_moment_and_bytes(tmp_path):
    code = (
        "import os, socket, time, sys; from benchmark.speed.marks import mark; mark('begins', 's');"
        "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname()); c = a.accept()[0]\n"
        "for number in range(3):\n"
        "    time.sleep(0.5); b.sendall(bytes(10_000)); c.recv(10_000, socket.MSG_WAITALL)\n"
        "    open('new', 'w').write(str(number)); os.replace('new', 'sum')\n"
        "mark('ends', 's'); time.sleep(0.5)"  # its bytes can be read as long as it is there
    )
    snapshots = Snapshots(tmp_path / "sum", tmp_path / "kept")
    run = measure([sys.executable, "-c", code], tmp_path, 1, python_path(), snapshots.watching)
    assert [one.path.read_text() for one in snapshots.found] == ["0", "1", "2"]
    moments = [one.seconds for one in snapshots.found]
    assert 0.5 < moments[0] < moments[1] - 0.4 < moments[2] - 0.8
    assert moments[2] <= run.wall_s
    assert run.startup_s < moments[0]
    nbytes = [one.wire_bytes for one in snapshots.found]
    if private_loopback():
        assert all(10_000 * (1 + place) <= (sent or 0) < 11_000 * (1 + place) for place, sent in enumerate(nbytes))
    else:
        assert nbytes == [None] * 3


def test_both_trainings_are_of_the_same_tensors_and_the_same_images(task):
    learner = Learner(task.folder, threads=1)
    trainer = make_trainer(task.with_fields(LEVERLESS), task.site)
    assert sum(value.numel() for value in learner.trained.values()) == sum(
        spec.size for spec in trainer.exchange.specs.values()
    )
    images, labels = learner.images("north")
    assert (images.numpy() == task.data["north"].train.images).all()
    assert len(learner.images("south.val")[1]) == 24
    first, second = (learner.train_round("north", images, labels, number) for number in (0, 1))
    assert second < first
    assert 0 <= learner.balanced_accuracy(*learner.images("north.val")) <= 1


def test_a_user_sends_the_whole_model_or_what_trains(task, tmp_path):
    """And either checkpoint, and the plain loop's aggregate, give the same accuracy."""
    learner = Learner(task.folder, threads=1)
    whole, trained = Net(str(task.folder)).state_dict(), Adapters(str(task.folder)).state_dict()
    sizes = [sum(value.numel() for value in state.values()) for state in (whole, trained)]
    assert sizes[0] > 5_000_000 > 100 * 4 > 0
    assert sizes[1] == sum(value.numel() for value in learner.trained.values())
    learner.train_round("north", *learner.images("north"), 0)
    values = learner.state()
    save_file(values, tmp_path / "plain.safetensors")
    kept = [{"model": {f"model.{key}": value for key, value in learner.model.state_dict().items()}}]
    kept.append({"model": {key.replace(".", "__"): value for key, value in values.items()}})
    evaluations = [(task.evaluate_theirs(load_trained), tmp_path / "plain.safetensors")]
    for number, content in enumerate(kept):
        torch.save(content, tmp_path / f"{number}.pt")
        evaluations.append((task.evaluate_theirs(load_checkpoint), tmp_path / f"{number}.pt"))
    found = [(evaluate(path, "val"), evaluate(path, "test")) for evaluate, path in evaluations]
    assert found[0] == found[1] == found[2]
    expected = learner.balanced_accuracy(
        *(torch.cat(both) for both in zip(*(learner.images(f"{name}.val") for name in NAMES), strict=True))
    )
    assert found[0][0] == pytest.approx(expected)


def test_each_lever_changes_one_thing_and_all_of_them_together(task):
    written = {}
    for name, one in contenders(task, 3).items():
        if one.command[1] == "simulator" and one.command[2] == "job":
            one.prepare(Path(folder := str(task.folder / f"jobs-{name}")))
            content = (Path(folder) / "job" / "app" / "config" / "experiment.json").read_text()
            written[name] = json.loads(content)
    assert written.pop("ours") == task.experiment.model_dump(mode="json")
    without = written.pop("leverless")
    assert (without["training"]["imbalance"], without["training"]["precision"]) == ("weighted_loss", "float32")
    together = written.pop("all")
    sections = {name: {section for section in one if one[section] != without[section]} for name, one in written.items()}
    assert sections == {
        "balanced": {"training"}, "statistics": {"head"}, "last_blocks": {"method"}, "bfloat16": {"training"},
    }  # fmt: skip
    assert together["head"] == written["statistics"]["head"]
    assert together["method"] == written["last_blocks"]["method"]
    assert (together["training"]["imbalance"], together["training"]["precision"]) == ("balanced_softmax", "auto")


def test_finished_runs_are_kept_and_others_are_made(task, tmp_path, monkeypatch):
    ran = []

    def once(contender, folder, rounds):
        if contender.what.startswith("stock") and len(ran) < 2:
            raise UserError("out of luck")
        ran.append(contender.what)
        return {"curve": [point(1, 0.7)], "test": 0.6, "wall_s": 1.0}

    monkeypatch.setattr(accuracy, "run_once", once)
    out, names = tmp_path / "out.json", ["plain", "stock_whole", "ours"]
    with pytest.raises(UserError, match="out of luck"):
        accuracy.measure_all(task, names, 1, 3, tmp_path / "runs", out)
    accuracy.measure_all(task, ["ours"], 1, 3, tmp_path / "runs", out)
    found = accuracy.measure_all(task, names, 2, 3, tmp_path / "runs", out)
    assert len(ran) == 6
    assert found == json.loads(out.read_text())
    assert list(found["contenders"]) == names
    assert {len(one["runs"]) for one in found["contenders"].values()} == {2}
    assert {"commit", "versions", "machine", "time"} <= found.keys()
    with pytest.raises(UserError, match="has runs of 'blocks' 3, not 4; another --out would be right"):
        accuracy.measure_all(task, names, 2, 4, tmp_path / "runs", out)


def test_options_that_make_no_sense(tmp_path, capsys):
    for arguments, message in ((["--rounds", "0"], "--rounds: 0; 1 or more"), (["--blocks", "0"], "--blocks: 0; 1")):
        assert accuracy.main([*arguments, "--out", str(tmp_path / "x.json")]) != 0
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", accuracy.NAMES)
def test_a_contender_from_start_to_end(task, tmp_path, name):
    found = accuracy.measure_all(task, [name], 1, 3, tmp_path / "runs", tmp_path / "out.json")["contenders"][name]
    (run,) = found["runs"]
    curve = run["curve"]
    # A closed form makes an aggregate before the first round, and one after the last.
    assert len(curve) >= 2
    assert all(0 < one["seconds"] <= run["wall_s"] for one in curve)
    assert [one["seconds"] for one in curve] == sorted(one["seconds"] for one in curve)
    assert all(0 <= value <= 1 for value in (run["test"], *(one["val"] for one in curve)))
    assert found["targets"]["final"]["seconds"] <= curve[-1]["seconds"]
    if private_loopback() and name != "plain":
        least = {"stock_whole": 20_000_000}.get(name, 50_000)
        assert curve[0]["wire_bytes"] < curve[-1]["wire_bytes"] <= run["wire_bytes"]
        assert curve[-1]["wire_bytes"] > least


def test_the_real_task_is_a_fold_of_the_preset():
    try:
        experiment, site = ham10000_sites(12)
    except UserError as error:
        pytest.skip(str(error))
    assert (experiment.data.fit, experiment.federation.min_sites, experiment.federation.rounds) == ("crop", 4, 12)
    found = site_images(experiment, site, "vidir_modern", list(experiment.federation.sites))
    assert all(found.items(split) for split in ("train", "val", "test"))


def test_stock_flare_also_runs_at_half_the_rate(task, tmp_path):
    """The preset's rate was chosen for our loss, not for stock FLARE's."""
    for name, factor in (("stock_whole", "1.0"), ("stock_half", "0.5")):
        contenders(task, 3)[name].prepare(tmp_path / name)
        written = (tmp_path / name / "stock" / "app" / "config" / "config_fed_client.json").read_text()
        assert f"{task.folder} whole {factor}" in written
