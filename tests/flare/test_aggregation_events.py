"""What FLARE's events of an aggregation carry, read by FLARE's own writer."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.event_type import EventType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.metrics_artifact_writer import MetricsArtifactWriter

from curve_data import NAMES, round_entry, summary
from pt_peft_flare.aggregation_events import aggregation_result, selection

TENSORS = {"head.bias": np.zeros(4, np.float32)}


class Written:
    """FLARE's writer in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder / "metrics"
        self._writer = MetricsArtifactWriter()
        self._workspace = SimpleNamespace(get_run_dir=lambda job: str(folder))
        self.fire(EventType.START_RUN)

    def fire(self, event_type: str, **props: Any) -> None:
        fl_ctx: Any = SimpleNamespace(
            get_prop=lambda key, default=None: props.get(key, default),
            get_engine=lambda: SimpleNamespace(get_workspace=lambda: self._workspace),
            get_job_id=lambda: "job",
        )
        self._writer.handle_event(event_type, fl_ctx)

    def aggregate(self, entry: Any) -> None:
        result = aggregation_result(entry, TENSORS, "balanced_accuracy")
        self.fire(AppEventType.AFTER_AGGREGATION, **{AppConstants.AGGREGATION_RESULT: result})

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "round_metrics.jsonl").read_text().splitlines()]


def named(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["name"]: one["value"] for one in metrics}


def test_a_round_is_told_as_the_curves_tell_it(tmp_path):
    written = Written(tmp_path)
    written.aggregate(round_entry(1))
    (line,) = written.lines()
    assert line["round"] == 1
    names = ("loss", "accuracy", "balanced_accuracy", "auroc", "macro_f1", "ece")
    mean = {f"val/{name}": pytest.approx(0.56) for name in names}
    assert named(line["aggregated_metrics"]) == {**mean, "train/loss": pytest.approx(0.85)}
    assert [(one["name"], one["weight"]) for one in line["sites"]] == [(name, 1) for name in NAMES]
    own = {f"val/{name}": pytest.approx(0.57) for name in names}
    assert named(line["sites"][2]["metrics"]) == {**own, "train/loss": pytest.approx(0.75)}
    assert not line["skipped_metrics"]


def test_what_is_not_there_is_left_out(tmp_path):
    """Under differential privacy there is no training loss; a site may have no validation images."""
    entry = round_entry(0)
    for report in entry["sites"].values():
        report.update(train_loss=None, val=None)
    entry["val_at_start"] = None
    written = Written(tmp_path)
    written.aggregate(entry)
    written.fire(EventType.END_RUN)
    assert not written.folder.exists(), "FLARE's writer has nothing to tell"


def test_the_best_round_is_the_one_that_started_from_it(tmp_path):
    written = Written(tmp_path)
    for number in range(2):
        written.aggregate(round_entry(number))
    validation: Any = summary(0.7)
    told = selection(2, validation, "auroc")
    written.fire(AppEventType.GLOBAL_BEST_MODEL_AVAILABLE, **{AppConstants.METRICS_SELECTION_INFO: told})
    written.fire(EventType.END_RUN)
    said = json.loads((written.folder / "metrics_summary.json").read_text())
    assert (said["final_round"], said["best_round"]) == (1, 2)
    assert named(said["best_metrics"])["val/auroc"] == 0.7
    assert said["key_metric"] == {"name": "val/auroc", "mode": "max", "mode_source": "select_by"}
    assert said["final_aggregated_metrics"] == written.lines()[1]["aggregated_metrics"]


def test_the_aggregate_goes_along():
    """As FLARE's own workflows have it."""
    result = aggregation_result(round_entry(1), TENSORS, "auroc")
    assert result.params is TENSORS
    assert (result.current_round, result.meta["nr_aggregated"]) == (1, 3)
