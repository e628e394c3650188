"""The checkpoint of a job that has not finished."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.model.adapter_file import save_adapter
from pt_peft.presets import demo
from pt_peft_flare.checkpoint import FOLDER, Checkpoint, CheckpointFile


def file(tmp_path, experiment, job="job"):
    workspace = SimpleNamespace(root_dir=str(tmp_path))
    fl_ctx: Any = SimpleNamespace(get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace))
    return CheckpointFile(fl_ctx, job, experiment)


def loaded(kept):
    checkpoint = kept.load()
    assert checkpoint
    return checkpoint


RECORD: Any = {"rounds": [1, 2], "best": None, "continues": None}
CHECKPOINT = Checkpoint(
    rounds=2,
    tensors={"a": np.ones(3, np.float32)},
    best={"a": np.zeros(3, np.float32)},
    optimizer={"m/a": np.ones(3)},
    statistics={"start": {"statistics/counts": np.arange(3.0)}, "finish": {}},
    record=RECORD,
)


def test_what_was_kept_comes_back(tmp_path):
    kept = file(tmp_path, demo("lora")[0])
    assert kept.load() is None
    kept.save(CHECKPOINT)
    back = loaded(kept)
    assert back.rounds == 2
    assert back.record == CHECKPOINT.record
    assert np.array_equal(back.tensors["a"], CHECKPOINT.tensors["a"])
    assert np.array_equal(back.best["a"], CHECKPOINT.best["a"])
    assert np.array_equal(back.optimizer["m/a"], CHECKPOINT.optimizer["m/a"])
    assert back.optimizer["m/a"].dtype == np.float64
    assert np.array_equal(back.statistics["start"]["statistics/counts"], [0, 1, 2])
    assert not back.statistics["finish"]
    kept.remove()
    assert kept.load() is None


def test_of_the_jobs_that_a_finished_one_has_continued_nothing_is_left(tmp_path):
    experiment = demo("lora")[0]
    for job, continues in (("other", None), ("first", None), ("second", "first"), ("third", "second")):
        file(tmp_path, experiment, job).save(replace(CHECKPOINT, record={**CHECKPOINT.record, "continues": continues}))
    file(tmp_path, experiment, "third").remove()
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["other.safetensors"]


def test_of_another_experiment(tmp_path):
    experiment = demo("lora")[0]
    file(tmp_path, experiment).save(CHECKPOINT)
    with pytest.raises(UserError, match="is the checkpoint of another experiment"):
        file(tmp_path, changed(experiment, seed=1)).load()


def test_damaged(tmp_path):
    experiment = demo("lora")[0]
    file(tmp_path, experiment).save(CHECKPOINT)
    path = tmp_path / FOLDER / "job.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is not a safetensors file"):
        file(tmp_path, experiment).load()


def test_a_clone_that_is_stopped_at_once_can_be_cloned(tmp_path):
    experiment = demo("lora")[0]
    file(tmp_path, experiment, "first").save(CHECKPOINT)
    file(tmp_path, experiment, "second").take_over("first")
    third = file(tmp_path, experiment, "third")
    third.take_over("second")
    assert loaded(third).rounds == 2
    assert np.array_equal(loaded(third).tensors["a"], CHECKPOINT.tensors["a"])
    assert loaded(third).record["continues"] == "second"
    third.take_over("first")
    assert loaded(third).record["continues"] == "second", "what is there stays"
    third.remove()
    assert not list((tmp_path / FOLDER).iterdir())


def test_nothing_is_taken_over_from_nothing_or_a_damaged_file(tmp_path):
    experiment = demo("lora")[0]
    second = file(tmp_path, experiment, "second")
    second.take_over("first")
    file(tmp_path, experiment, "first").save(CHECKPOINT)
    (tmp_path / FOLDER / "first.safetensors").write_bytes(b"nothing")
    second.take_over("first")
    assert second.load() is None


@pytest.mark.parametrize(
    "header",
    [
        {},
        [1],
        {"rounds": 2},
        {"rounds": "2", "record": RECORD},
        {"rounds": 3, "record": RECORD},
        {"rounds": 10**9, "record": RECORD},
        {"rounds": 2, "record": None},
    ],
)
def test_a_header_of_something_else(header, tmp_path):
    experiment = demo("lora")[0]
    if isinstance(header, dict):
        header = {"experiment_sha256": experiment.digest(), **header} if header else header
    save_adapter(tmp_path / FOLDER / "job.safetensors", {}, header)
    with pytest.raises(UserError, match="its header is not that of a checkpoint"):
        file(tmp_path, experiment).load()
    file(tmp_path, experiment).remove()
    assert not list((tmp_path / FOLDER).iterdir())
