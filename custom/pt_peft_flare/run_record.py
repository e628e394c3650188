"""`metrics.json`: what a run did, as the server saw it. While it runs, its finished rounds are in `rounds.jsonl`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from pydantic import JsonValue

from pt_peft.environment import own_code
from pt_peft.exchange.tensors import Tensors, TensorSpec, payload_bytes, payload_sha256
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Task
from pt_peft.experiment.statistics import Stage, StageName, When
from pt_peft.federation.head_statistics import SolvedHead
from pt_peft.federation.reports import ChoiceReport, EvaluationReport, SplitMetrics, StatisticsReport, TrainingReport
from pt_peft.files import write_atomically
from pt_peft.training.metrics import confusion_metrics
from pt_peft_flare.cross_site import CrossSite
from pt_peft_flare.parent.refusals import read_refusals
from pt_peft_flare.round_file import RoundEntry, RoundFile, Summary
from pt_peft_flare.round_results import LeftOut

FILE_NAME = "metrics.json"
ROUNDS = "rounds.jsonl"
SPLITS = ("val", "test", "own_val", "own_test")
"""Splits of an `EvaluationReport`."""
METRICS = (
    "loss",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "macro_f1",
    "ece",
    "quadratic_kappa",
    "mean_absolute_error",
)
"""Numbers of `SplitMetrics`. The last two are None unless ``data.task`` is ``ordinal``."""


class StageEntry(TypedDict):
    """A finished stage of statistics, see `pt_peft.experiment.statistics`."""

    when: When
    stage: StageName
    round: int
    """Number of the rounds before it."""
    job: str
    """In which it was done: this one, or one that it continues."""
    seconds: float
    sites: dict[str, dict[str, Any]]
    """By site its `StatisticsReport` or `ChoiceReport`, with ``bytes_in``, ``bytes_out`` and ``sha256`` of what it
    sent, as its ledger has it."""
    left_out: dict[str, dict[str, JsonValue]]
    """As in `RoundEntry`."""
    head: SolvedHead | None
    """How the classifier was made, after the last stage at that end of the rounds."""


class Best(TypedDict):
    """The best aggregate so far."""

    rounds: int
    """Number of finished rounds that it comes from."""
    val: Summary


class CrossSiteEntry(TypedDict):
    """What FLARE's cross-site evaluation has found after the rounds."""

    models: dict[str, dict[str, Any]]
    """By FLARE's name of a model what ``final`` has of the final aggregate, and its ``sha256``: that of a site's own
    model as it came, as the site's ledger has it, null for the server's."""
    left_out: dict[str, dict[str, JsonValue]]
    """Sites whose own model did not come, as in `RoundEntry`."""


class Record(TypedDict):
    """The content of ``metrics.json`` but for its last field: ``rounds``, a list of `RoundEntry`."""

    status: str
    """``running``, ``finished`` or ``failed``."""
    reason: str | None
    """Why it failed."""
    job: str
    continues: str | None
    """The job whose rounds come first here."""
    sites: list[str]
    refused: dict[str, str]
    """Sites that were to have the job and did not take it when it started, with their reasons."""
    code: dict[str, str]
    """Which code the server runs; each site's report has the site's. See `pt_peft.environment.Code`."""
    experiment: dict[str, Any]
    exchanged: dict[str, int]
    """What a site sends in the first round: numbers of ``tensors`` and ``parameters``, and their ``bytes`` as sent."""
    statistics: list[StageEntry]
    """The stages of statistics, in order; empty without a head in closed form."""
    best: Best | None
    final: dict[str, Any] | None
    """The evaluation of the final aggregate: `EvaluationReport` by ``sites``, ``left_out``, and `Summary` by split."""
    cross_site: CrossSiteEntry | None
    """None unless FLARE's workflow ran after the rounds."""


@dataclass(frozen=True)
class FinishedRound:
    """What the server knows of a round after it."""

    number: int
    """From 0."""
    reports: Mapping[str, TrainingReport]
    """Reports of the sites that took part."""
    left_out: Mapping[str, LeftOut]
    """Reasons of the others, by site."""
    bytes_in: Mapping[str, int]
    """Bytes of the payload down, raw tensors only, by site."""
    bytes_out: Mapping[str, int]
    """Bytes of the payload up, raw tensors only, by site."""
    digests: Mapping[str, str]
    """`payload_sha256` of the payload up as it came, by site."""
    shares: Mapping[str, float]
    """Share of each site in the aggregate; empty where sites have none."""
    seconds: float
    """Wall time."""
    notes: Mapping[str, float]
    """Measurements of the aggregation, by name."""


@dataclass(frozen=True)
class FinishedStage:
    """What the server knows of a stage of statistics after it."""

    stage: Stage
    reports: Mapping[str, StatisticsReport | ChoiceReport]
    """Reports of the sites that took part."""
    left_out: Mapping[str, LeftOut]
    """Reasons of the others, by site."""
    sent: Mapping[str, Tensors]
    """What the sites that took part have sent."""
    made: SolvedHead | None
    """How the head was made, after the last stage."""
    bytes_in: Mapping[str, int]
    """Bytes of the payload down, raw tensors only, by site."""
    seconds: float
    """Wall time."""


def summarise(sites: Mapping[str, SplitMetrics | None], task: Task) -> Summary | None:
    """One split's metrics over the sites that have images in it; None if none has."""
    metrics = [value for value in sites.values() if value is not None]
    if not metrics:
        return None
    mean: dict[str, float | None] = {}
    for name in METRICS:
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
    """Keeps each finished round on disk, and puts all of them into ``metrics.json`` at the end.

    Attributes:
        rounds: the finished rounds.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        job_id: str,
        sites: list[str],
        first_up: Mapping[str, TensorSpec],
        nbytes: int,
    ):
        """Begins a record; the first file is written after the first round.

        Args:
            folder: where the files go.
            experiment: what runs.
            job_id: FLARE's id of the job.
            sites: names of the sites that are there.
            first_up: the tensors that a site sends in the first round.
            nbytes: their bytes as they travel.
        """
        self._path = folder / FILE_NAME
        self.rounds = RoundFile(folder / ROUNDS)
        self._task: Task = experiment.data.task
        self._record: Record = {
            "status": "running",
            "reason": None,
            "job": job_id,
            "continues": None,
            "sites": sites,
            "refused": read_refusals(folder),
            "code": own_code().model_dump(),
            "experiment": experiment.model_dump(mode="json"),
            "exchanged": {
                "tensors": len(first_up),
                "parameters": sum(spec.size for spec in first_up.values()),
                "bytes": nbytes,
            },
            "statistics": [],
            "best": None,
            "final": None,
            "cross_site": None,
        }

    @property
    def content(self) -> Record:
        """All but the rounds."""
        return self._record

    def continue_from(self, job_id: str, content: Record, rounds: RoundFile) -> None:
        """Takes over the job `job_id`, which broke off with `content` and `rounds`. Raises OSError."""
        self._record["continues"] = job_id
        self._record["statistics"] = content["statistics"]
        self._record["best"] = content["best"]
        self.rounds.follow(rounds)

    def add_round(self, finished: FinishedRound) -> RoundEntry:
        """Adds a finished round. Returns its entry.

        Raises:
            OSError: if it cannot be written.
        """
        sites = {
            site: {
                **report.model_dump(mode="json"),
                "bytes_in": finished.bytes_in[site],
                "bytes_out": finished.bytes_out[site],
                "sha256": finished.digests[site],
                "share": finished.shares.get(site),
            }
            for site, report in sorted(finished.reports.items())
        }
        content = {
            "round": finished.number,
            "job": self._record["job"],
            "seconds": round(finished.seconds, 3),
            "sites": sites,
            "left_out": _left_out(finished.left_out),
            "val_at_start": summarise({site: report.val for site, report in finished.reports.items()}, self._task),
            **finished.notes,
        }
        entry = cast(RoundEntry, content)
        self.rounds.append(entry)
        return entry

    def add_stage(self, finished: FinishedStage) -> StageEntry:
        """Adds a finished stage of statistics. Returns its entry."""
        sites = {
            site: {
                **report.model_dump(mode="json"),
                "bytes_in": finished.bytes_in[site],
                "bytes_out": payload_bytes(finished.sent[site]),
                "sha256": payload_sha256(finished.sent[site]),
            }
            for site, report in sorted(finished.reports.items())
        }
        entry: StageEntry = {
            "when": finished.stage.when,
            "stage": finished.stage.name,
            "round": finished.stage.round_number,
            "job": self._record["job"],
            "seconds": round(finished.seconds, 3),
            "sites": sites,
            "left_out": _left_out(finished.left_out),
            "head": finished.made,
        }
        self._record["statistics"].append(entry)
        return entry

    def add_final(self, reports: Mapping[str, EvaluationReport], left_out: Mapping[str, LeftOut]) -> dict[str, Any]:
        """Adds the evaluation of the final aggregate. Returns its entry."""
        self._record["final"] = final = _evaluated(reports, left_out, self._task)
        return final

    def add_cross_site(self, found: CrossSite) -> CrossSiteEntry:
        """Adds a cross-site evaluation. Returns its entry."""
        entry: CrossSiteEntry = {
            "models": {
                name: {"sha256": one.sha256, **_evaluated(one.results.reports, one.results.left_out, self._task)}
                for name, one in sorted(found.models.items(), key=lambda item: (item[1].sha256 is not None, item[0]))
            },
            "left_out": _left_out(found.left_out),
        }
        self._record["cross_site"] = entry
        return entry

    def set_best(self, finished_rounds: int, validation: Summary) -> None:
        """Names the aggregate that is the best so far."""
        self._record["best"] = {"rounds": finished_rounds, "val": validation}

    def close(self, status: str, reason: str | None = None) -> None:
        """Ends the record as ``finished``, or as ``failed`` with the reason.

        Raises:
            OSError: if it cannot be written.
        """
        self._record["status"], self._record["reason"] = status, reason
        content = json.dumps(self._record, indent=1).removesuffix("\n}").encode()
        rounds = b",\n".join(b"  " + line.rstrip() for line in self.rounds.lines())
        write_atomically(self._path, content + b',\n "rounds": [\n' + rounds + b"\n ]\n}\n")


def _evaluated(reports: Mapping[str, EvaluationReport], left_out: Mapping[str, LeftOut], task: Task) -> dict[str, Any]:
    """The evaluation of one model at all sites."""
    summary = {
        split: summarise({site: getattr(report, split) for site, report in reports.items()}, task) for split in SPLITS
    }
    return {
        "sites": {site: report.model_dump(mode="json") for site, report in sorted(reports.items())},
        "left_out": _left_out(left_out),
        **summary,
    }


def _left_out(sites: Mapping[str, LeftOut]) -> dict[str, dict[str, JsonValue]]:
    return {site: left_out.to_json() for site, left_out in sorted(sites.items())}
