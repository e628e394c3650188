"""The checkpoint of a job that has not finished."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.model.adapter_file import save_adapter
from pt_peft.presets import demo
from pt_peft_flare.checkpoint import FOLDER, Checkpoint, CheckpointFile
from pt_peft_flare.round_file import RoundFile


def file(tmp_path, experiment, job="job"):
    workspace = SimpleNamespace(root_dir=str(tmp_path))
    fl_ctx: Any = SimpleNamespace(get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace))
    return CheckpointFile(fl_ctx, job, experiment)


def loaded(kept):
    checkpoint = kept.load()
    assert checkpoint
    return checkpoint


RECORD: Any = {"best": None, "continues": None}


def rounds_of(tmp_path, count) -> RoundFile:
    rounds = RoundFile(tmp_path / "run" / "rounds.jsonl")
    for number in range(count):
        rounds.append(cast(Any, {"round": number, "sites": {}}))
    return rounds


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    """After two rounds."""
    now, best = {"a": np.ones(3, np.float32)}, {"a": np.zeros(3, np.float32)}
    statistics = {"start": {"statistics/counts": np.arange(3.0)}, "finish": {}}
    return Checkpoint(rounds_of(tmp_path, 2), now, best, {"m/a": np.ones(3)}, statistics, RECORD)


def numbers(rounds) -> list[int]:
    return [one["round"] for one in rounds]


def test_what_was_kept_comes_back(checkpoint, tmp_path):
    kept = file(tmp_path, demo("lora")[0])
    assert kept.load() is None
    kept.save(checkpoint)
    back = loaded(kept)
    assert numbers(back.rounds) == [0, 1]
    assert back.record == checkpoint.record
    assert np.array_equal(back.tensors["a"], checkpoint.tensors["a"])
    assert np.array_equal(back.best["a"], checkpoint.best["a"])
    assert np.array_equal(back.optimizer["m/a"], checkpoint.optimizer["m/a"])
    assert back.optimizer["m/a"].dtype == np.float64
    assert np.array_equal(back.statistics["start"]["statistics/counts"], [0, 1, 2])
    assert not back.statistics["finish"]
    kept.remove()
    assert kept.load() is None
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_round_is_written_once_and_counts_from_when_the_tensors_are_there(checkpoint, tmp_path, monkeypatch):
    """A server may die between the two files."""
    experiment = demo("lora")[0]
    kept = file(tmp_path, experiment)
    kept.save(checkpoint)
    lines = tmp_path / FOLDER / "job.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("pt_peft_flare.checkpoint.save_adapter", full_disk)
        checkpoint.rounds.append(cast(Any, {"round": 2, "sites": {}}))
        with pytest.raises(OSError, match="full"):
            kept.save(checkpoint)
    assert len(lines.read_bytes().splitlines()) == 3
    clone = file(tmp_path, experiment, "clone")
    clone.take_over("job")
    back = loaded(clone)
    assert numbers(back.rounds) == [0, 1]
    back.rounds.append(cast(Any, {"round": 2, "sites": {"a": {}}}))
    clone.save(back)
    assert loaded(clone).rounds.path.read_bytes().splitlines()[:2] == lines.read_bytes().splitlines()[:2]
    assert [[*one["sites"]] for one in loaded(clone).rounds] == [[], [], ["a"]]


def full_disk(*arguments):
    raise OSError("full")


def test_of_the_jobs_that_a_finished_one_has_continued_nothing_is_left(checkpoint, tmp_path):
    experiment = demo("lora")[0]
    for job, continues in (("other", None), ("first", None), ("second", "first"), ("third", "second")):
        file(tmp_path, experiment, job).save(replace(checkpoint, record={**checkpoint.record, "continues": continues}))
    file(tmp_path, experiment, "third").remove()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["other.jsonl", "other.safetensors"]


def test_of_another_experiment(checkpoint, tmp_path):
    experiment = demo("lora")[0]
    file(tmp_path, experiment).save(checkpoint)
    with pytest.raises(UserError, match="is the checkpoint of another experiment"):
        file(tmp_path, changed(experiment, seed=1)).load()


def test_damaged(checkpoint, tmp_path):
    experiment = demo("lora")[0]
    file(tmp_path, experiment).save(checkpoint)
    path = tmp_path / FOLDER / "job.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match="is not a safetensors file"):
        file(tmp_path, experiment).load()
    path.write_bytes(whole)
    lines = path.with_suffix(".jsonl")
    lines.write_bytes(lines.read_bytes()[:-1])
    with pytest.raises(UserError, match="the rounds beside it are fewer"):
        file(tmp_path, experiment).load()
    lines.unlink()
    with pytest.raises(UserError, match="the rounds beside it are fewer"):
        file(tmp_path, experiment).load()


def test_a_clone_that_is_stopped_at_once_can_be_cloned(checkpoint, tmp_path):
    experiment = demo("lora")[0]
    file(tmp_path, experiment, "first").save(checkpoint)
    file(tmp_path, experiment, "second").take_over("first")
    third = file(tmp_path, experiment, "third")
    third.take_over("second")
    assert numbers(loaded(third).rounds) == [0, 1]
    assert np.array_equal(loaded(third).tensors["a"], checkpoint.tensors["a"])
    assert loaded(third).record["continues"] == "second"
    third.take_over("first")
    assert loaded(third).record["continues"] == "second", "what is there stays"
    third.remove()
    assert not list((tmp_path / FOLDER).iterdir())


def test_nothing_is_taken_over_from_nothing_or_a_damaged_file(checkpoint, tmp_path):
    experiment = demo("lora")[0]
    second = file(tmp_path, experiment, "second")
    second.take_over("first")
    file(tmp_path, experiment, "first").save(checkpoint)
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
    (tmp_path / FOLDER).mkdir()
    rounds_of(tmp_path, 2).path.rename(tmp_path / FOLDER / "job.jsonl")
    save_adapter(tmp_path / FOLDER / "job.safetensors", {}, header)
    with pytest.raises(UserError, match="its header is not that of a checkpoint"):
        file(tmp_path, experiment).load()
    file(tmp_path, experiment).remove()
    assert not list((tmp_path / FOLDER).iterdir())
