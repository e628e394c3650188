"""MedMNIST data sets of every task, from the file to the federation's metrics."""

import numpy as np
import pytest

from benchmark.measurements.compare import compare
from helpers import changed, simulate
from pt_peft.data.medmnist import CLASSES
from pt_peft.data.site_data import load_site_data
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Method
from pt_peft.experiment.site import Site
from pt_peft.presets import preset
from pt_peft.training.metrics import evaluate_predictions
from pt_peft_flare.job_folder import write_job, write_workspace


def write_npz(path, experiment: Experiment, size: int = 28, rgb: bool = False) -> None:
    """A file as MedMNIST's, whose images tell their labels: a label's stripe is bright."""
    random, classes = np.random.default_rng(0), len(experiment.data.classes)
    arrays = {}
    for split, count in (("train", 96), ("val", 40), ("test", 40)):
        if experiment.data.task == "multilabel":
            labels = (random.random((count, classes)) < 0.3).astype(np.uint8)
            bright = labels
        else:
            labels = (np.arange(count) % classes).astype(np.uint8)[:, None]
            bright = np.eye(classes)[labels[:, 0]]
        stripes = np.repeat(bright, -(-size // classes), axis=1)[:, :size]
        images = (40 + 150 * stripes[:, None, :] + random.integers(0, 40, (count, size, size))).astype(np.uint8)
        arrays[f"{split}_images"] = np.stack([images] * 3, axis=-1) if rgb else images
        arrays[f"{split}_labels"] = labels
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize("flag", CLASSES)
def test_every_flag(flag, tmp_path):
    experiment, _ = preset(f"medmnist:{flag}")
    write_npz(
        tmp_path / f"{flag}.npz", experiment, rgb=flag in ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")
    )
    site = Site(
        data=SiteData(source="npz", npz=str(tmp_path / f"{flag}.npz"), pooled=True), cache=str(tmp_path / "cache")
    )
    data = load_site_data(experiment, site, "site-1", ["site-1", "site-2"])
    classes = len(experiment.data.classes)
    assert len(data.train) == 48
    assert data.train.images.shape[1:] == (3, 64, 64)
    assert data.train.labels.shape == ((48, classes) if flag == "chestmnist" else (48,))
    assert experiment.data.task == {"chestmnist": "multilabel", "retinamnist": "ordinal"}.get(flag, "multiclass")


def test_an_unknown_flag():
    with pytest.raises(UserError, match="'medmnist:nodulemnist3d': the two-dimensional data sets are pathmnist, "):
        preset("medmnist:nodulemnist3d")


@pytest.mark.parametrize(
    ("flag", "imbalance"),
    [("chestmnist", "weighted_loss"), pytest.param("retinamnist", "weighted_sampler", marks=pytest.mark.slow)],
)
def test_a_federation(flag, imbalance, tiny, tiny_weights, shared_host, tmp_path):
    experiment = changed(
        tiny,
        data={**preset(f"medmnist:{flag}")[0].data.model_dump(mode="json"), "test_time_flips": "horizontal"},
        partition={"kind": "iid"},
        method=Method(name="full").model_dump(mode="json"),
        training={"imbalance": imbalance, "learning_rate": 3e-3, "local_epochs": 8},
    )
    write_npz(tmp_path / "data.npz", experiment)
    data = SiteData(source="npz", npz=str(tmp_path / "data.npz"), pooled=True)
    site = Site(data=data, backbone=str(tiny_weights), cache=str(tmp_path / "cache"), limits=Limits.open())
    write_job(experiment, tmp_path / "job")
    write_workspace(site, tmp_path / "ws")
    run = simulate(tmp_path / "job", tmp_path / "ws", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    final = run.metrics["final"]
    test = final["sites"]["site-1"]["test"]
    classes = len(experiment.data.classes)
    assert len(test["class_auroc"]) == classes
    assert final["test"]["mean"]["auroc"] > 0.6
    if flag == "retinamnist":
        assert test["mean_absolute_error"] >= 0
        assert final["test"]["pooled"]["quadratic_kappa"] <= 1
        return
    assert np.array(test["confusion"]).shape == (14, 4)
    assert np.array(test["confusion"]).sum() == 14 * test["count"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.server / "tb_events" / "site-1")).Reload()
    assert events.Scalars("test_auroc/hernia")[-1].value == pytest.approx(test["class_auroc"][13], abs=1e-6)
    rows = {row["name"]: row["test"]["pooled"] for row in compare([tmp_path / "ws"], baselines=False, jobs=1)["rows"]}
    assert rows["federated full"]["accuracy"] == pytest.approx(final["test"]["pooled"]["accuracy"])


def test_flips_at_test_time_average_logits(tiny, tiny_weights, tmp_path):
    import torch

    from pt_peft.data.site_data import ImageSplit
    from pt_peft.training.trainer import LocalTrainer

    random = np.random.default_rng(0)
    split = ImageSplit(random.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), np.arange(6) % 4)
    for flips, axes in (("horizontal", [(), (3,)]), ("all", [(), (2,), (3,), (2, 3)])):
        trainer = LocalTrainer(changed(tiny, data={"test_time_flips": flips}), tiny_weights, torch.device("cpu"))
        with torch.inference_mode():
            images = torch.from_numpy(split.images).float() / 255
            mean = torch.stack([trainer._logits(images.flip(one), trainer.model.module) for one in axes]).mean(dim=0)
        expected = evaluate_predictions(mean, torch.from_numpy(split.labels))
        assert trainer.evaluate({}, split)["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert (
            evaluate_predictions(trainer._logits(images, trainer.model.module), torch.from_numpy(split.labels))["loss"]
            != expected["loss"]
        )
