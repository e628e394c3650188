"""The record of a job: `rounds.jsonl` while it runs, `metrics.json` at its end."""

import json
import tracemalloc
from pathlib import Path

import pytest

from pt_peft.environment import own_code
from pt_peft.federation.reports import SplitMetrics, TrainingReport
from pt_peft_flare.round_file import RoundFile, read_rounds
from pt_peft_flare.run_record import FILE_NAME, ROUNDS, FinishedRound, RunRecord

SITES = [f"hospital-{number}" for number in range(10)]
SHARES = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"), 0.5)
CONFUSION = [[1] * 7 for _ in range(7)]
VALIDATION = SplitMetrics(count=49, loss=1.0, class_auroc=[0.5] * 7, confusion=CONFUSION, **SHARES)
REPORT = TrainingReport(num_samples=64, train_loss=0.5, seconds=1.0, val=VALIDATION, code=own_code())


def finished(number: int) -> FinishedRound:
    return FinishedRound(
        number=number,
        reports=dict.fromkeys(SITES, REPORT),
        left_out={},
        bytes_in=dict.fromkeys(SITES, 1),
        bytes_out=dict.fromkeys(SITES, 1),
        digests=dict.fromkeys(SITES, "0" * 64),
        shares={},
        seconds=1.0,
        notes={},
    )


def begun(folder: Path, experiment, job="job") -> RunRecord:
    folder.mkdir(exist_ok=True)
    return RunRecord(folder, experiment, job, SITES, {}, 0)


def test_rounds_while_it_runs_and_all_at_the_end(tiny, tmp_path):
    record = begun(tmp_path, tiny)
    for number in range(3):
        record.add_round(finished(number))
        assert [one["round"] for one in read_rounds(tmp_path / ROUNDS)] == list(range(number + 1))
        assert not (tmp_path / FILE_NAME).exists()
    kept = read_rounds(tmp_path / ROUNDS)
    record.close("finished")
    content = json.loads((tmp_path / FILE_NAME).read_text())
    assert content == {**record.content, "rounds": kept}
    assert content["rounds"][2]["sites"]["hospital-9"]["val"]["confusion"] == CONFUSION
    assert [one["round"] for one in record.rounds] == [0, 1, 2], "the lead may still ask how far it is"


def test_a_job_that_fails_before_its_first_round(tiny, tmp_path):
    begun(tmp_path, tiny).close("failed", "nobody came")
    content = json.loads((tmp_path / FILE_NAME).read_text())
    assert (content["status"], content["reason"], content["rounds"]) == ("failed", "nobody came", [])


def test_what_a_round_costs_does_not_grow(tiny, tmp_path):
    """Neither memory nor bytes: a record that is kept and written whole grows by 150 kB a round here."""
    record = begun(tmp_path, tiny)
    peaks, sizes = [], []
    for number in range(100):
        before = record.rounds.path.stat().st_size if number else 0
        tracemalloc.start()
        record.add_round(finished(number))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(record.rounds.path.stat().st_size - before)
    assert max(sizes) - min(sizes) < 100
    assert max(peaks[90:]) < 1.2 * max(peaks[5:15])
    assert sum(1 for _ in record.rounds) == 100


def test_a_full_disk_keeps_the_rounds(tiny, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("full")

    record = begun(tmp_path, tiny)
    record.add_round(finished(0))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="full"):
            record.add_round(finished(1))
        with pytest.raises(OSError, match="full"):
            record.close("failed", "full")
    assert [one["round"] for one in record.rounds] == [0]
    record.add_round(finished(1))
    assert [one["round"] for one in read_rounds(tmp_path / ROUNDS)] == [0, 1], "what was written in vain is gone"


def test_a_clone_begins_with_the_rounds_of_the_first(tiny, tmp_path):
    first, clone = begun(tmp_path / "first", tiny), begun(tmp_path / "clone", tiny, "clone")
    for number in range(2):
        first.add_round(finished(number))
    clone.rounds.path.write_text("of an earlier simulation in this folder")
    clone.continue_from("job", first.content, first.rounds)
    clone.add_round(finished(2))
    clone.close("finished")
    content = json.loads((tmp_path / "clone" / FILE_NAME).read_text())
    assert content["continues"] == "job"
    assert [(one["round"], one["job"]) for one in content["rounds"]] == [(0, "job"), (1, "job"), (2, "clone")]


def test_a_line_that_is_just_being_written_is_not_read(tmp_path):
    path = tmp_path / ROUNDS
    assert read_rounds(path) == []
    path.write_text('{"round": 0}\n{"round": 1')
    assert [one["round"] for one in read_rounds(path)] == [0]
    with pytest.raises(ValueError, match="has 1 rounds, not 2"):
        RoundFile(path).reopen(2)
