"""`metrics.json`: what a run did, as the server saw it."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pt_peft import __version__
from pt_peft.exchange.tensors import TensorSpec
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Task
from pt_peft.federation.reports import EvaluationReport, SplitMetrics, TrainingReport
from pt_peft.files import write_atomically
from pt_peft.training.metrics import confusion_metrics
from pt_peft_flare.tracking import SCALARS

FILE_NAME = "metrics.json"
SPLITS = ("val", "test", "own_val", "own_test")
"""Of an `EvaluationReport`."""


def summarise(sites: Mapping[str, SplitMetrics | None], task: Task) -> dict | None:
    """One split's metrics over the sites that have images in it; None if none has.

    Returns:
        ``mean``: the unweighted mean over sites of each metric (of those that have it; None if none has);
        ``pooled``: accuracy, balanced accuracy and macro F1, for ``ordinal`` kappa and error too, of all images together,
        exact, from the sum of the sites' confusion matrices.
    """
    metrics = [value for value in sites.values() if value is not None]
    if not metrics:
        return None
    mean = {}
    for name in SCALARS:
        values = [value for value in (getattr(one, name) for one in metrics) if value is not None]
        mean[name] = float(np.mean(values)) if values else None
    confusion = np.sum([np.asarray(one.confusion, dtype=np.int64) for one in metrics], axis=0)
    pooled = {
        **confusion_metrics(confusion, task),
        "count": sum(one.count for one in metrics),
        "confusion": confusion.tolist(),
    }
    return {"mean": mean, "pooled": pooled}


class RunRecord:
    """Written anew after every round, so that it is never behind what was finished."""

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        job_id: str,
        sites: list[str],
        a_round: Mapping[str, TensorSpec],
        nbytes: int,
    ):
        """Args:
        a_round: the tensors that a site sends in a round.
        nbytes: what they take on the way.
        """
        self._path = folder / FILE_NAME
        self._task = experiment.data.task
        self._record = {
            "status": "running",
            "reason": None,
            "job": job_id,
            "continues": None,
            "sites": sites,
            "version": __version__,
            "experiment": experiment.model_dump(mode="json"),
            "exchanged": {
                "tensors": len(a_round),
                "parameters": sum(spec.size for spec in a_round.values()),
                "bytes": nbytes,
            },
            "rounds": [],
            "best": None,
            "final": None,
        }

    @property
    def content(self) -> dict:
        """All of it."""
        return self._record

    def continue_from(self, job_id: str, content: dict) -> None:
        """Takes over the rounds of the job `job_id`, which broke off with `content`."""
        self._record |= {"continues": job_id, "rounds": content["rounds"], "best": content["best"]}

    def add_round(
        self,
        round_number: int,
        reports: Mapping[str, TrainingReport],
        left_out: Mapping[str, str],
        bytes_in: Mapping[str, int],
        bytes_out: Mapping[str, int],
        seconds: float,
        notes: Mapping[str, float],
    ) -> dict | None:
        """Adds a finished round; bytes by site, as it sees them, raw tensors only; `notes` on the aggregation. Returns the summary
        of its validation, which is that of the model it started from.
        """
        validation = summarise({site: report.val for site, report in reports.items()}, self._task)
        self._record["rounds"].append(
            {
                "round": round_number,
                "seconds": round(seconds, 3),
                "sites": {
                    site: {**report.model_dump(mode="json"), "bytes_in": bytes_in[site], "bytes_out": bytes_out[site]}
                    for site, report in sorted(reports.items())
                },
                "left_out": dict(sorted(left_out.items())),
                "val_at_start": validation,
                **notes,
            }
        )
        self._write()
        return validation

    def add_final(self, reports: Mapping[str, EvaluationReport], left_out: Mapping[str, str]) -> dict:
        """Adds the evaluation of the final aggregate. Returns its summary by split."""
        summary = {
            split: summarise({site: getattr(report, split) for site, report in reports.items()}, self._task)
            for split in SPLITS
        }
        self._record["final"] = {
            "sites": {site: report.model_dump(mode="json") for site, report in sorted(reports.items())},
            "left_out": dict(sorted(left_out.items())),
            **summary,
        }
        self._write()
        return summary

    def set_best(self, finished_rounds: int, validation: dict) -> None:
        """Names the aggregate that is the best so far."""
        self._record["best"] = {"rounds": finished_rounds, "val": validation}

    def close(self, status: str, reason: str | None = None) -> None:
        """Ends the record as ``finished``, or as ``failed`` with the reason."""
        self._record.update(status=status, reason=reason)
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, (json.dumps(self._record, indent=1) + "\n").encode())
