"""The measurement of adapters in the last blocks: equal time, and going on after a run that was stopped."""

import json

import pytest

from benchmark.measurements import last_blocks
from pt_peft.errors import UserError

SETTINGS: last_blocks.Settings = {
    "method": "lora_vpt",
    "most_blocks": 12,
    "rounds": 12,
    "images": None,
    "precision": "float32",
    "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 4.0},
}


class Measurement:
    """Says what a round takes, and notes what was asked."""

    asked: list[tuple[object, ...]]

    def __init__(self, settings):
        type(self).asked = []

    def timing(self, blocks, budget_s):
        self.asked.append(("timing", blocks, budget_s))
        return {"blocks": blocks, "features_s": 0.0, "round_s": blocks / 2, "rounds": 12}

    def row(self, timing, seed, commit):
        self.asked.append(("row", timing["blocks"], seed))
        if (timing["blocks"], seed) == (3, 1) and not stopped:
            stopped.append(seed)
            raise KeyboardInterrupt
        test = dict.fromkeys(last_blocks.METRICS, 0.5)
        same = {
            "commit": commit,
            "rounds": 12,
            "parameters": 5,
            "megabytes": 1.0,
            "minutes": 1.0,
            "val": test,
            "test": test,
        }
        return {"blocks": timing["blocks"], "seed": seed, **same}


stopped: list[int] = []


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(last_blocks, "_Measurement", Measurement)
    stopped.clear()
    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        last_blocks.measure(out, SETTINGS, [3, 12], [0, 1])
    assert Measurement.asked[:3] == [("timing", 12, None), ("row", 12, 0), ("row", 12, 1)]
    assert Measurement.asked[3] == ("timing", 3, 72.0)  # 12 rounds of 6 s
    last_blocks.measure(out, SETTINGS, [3, 12], [0, 1])
    assert Measurement.asked == [("row", 3, 1)]
    rows = json.loads(out.read_text())["rows"]
    assert [(row["blocks"], row["seed"]) for row in rows] == [(12, 0), (12, 1), (3, 0), (3, 1)]
    with pytest.raises(UserError, match="has runs of 'rounds' 12, not 3; another --out would be right"):
        last_blocks.measure(out, {**SETTINGS, "rounds": 3}, [12], [0])


def test_a_run_that_is_too_short_to_keep_features_is_timed_without(monkeypatch):
    """Eight views are computed at once, which pays from eight rounds on."""
    measurement = last_blocks._Measurement.__new__(last_blocks._Measurement)
    measurement._settings = SETTINGS
    asked: list[int] = []

    def timed(blocks, rounds):
        asked.append(rounds)
        return (20.0, 1.0) if rounds >= 8 else (0.0, 5.0)

    monkeypatch.setattr(measurement, "_timed", timed)
    assert measurement.timing(3, 50.0) == {"blocks": 3, "features_s": 20.0, "round_s": 1.0, "rounds": 30}
    assert asked == [8]
    assert measurement.timing(3, 25.0) == {"blocks": 3, "features_s": 0.0, "round_s": 5.0, "rounds": 5}
    assert asked == [8, 8, 7]
