"""What a server keeps outside a job's folder to continue it: a clone of a job that broke off starts where it ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nvflare.apis.fl_context import FLContext
from pydantic import JsonValue

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.adapter_file import load_adapter, load_header, save_adapter
from pt_peft_flare.run_record import Record

FOLDER = "checkpoints"
"""Folder in the server's workspace; one file for each job that has not finished."""
_NOW, _BEST, _OPTIMIZER = "now/", "best/", "optimizer/"
_STATISTICS = {"start": "start/", "finish": "finish/"}
"""Prefixes of the keys in the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A job after some of its rounds."""

    rounds: int
    """Number of finished rounds."""
    tensors: Tensors
    """The tensors that they have changed."""
    best: Tensors
    """The best aggregate so far; empty if there is none."""
    optimizer: Tensors
    """The state of the server's optimiser."""
    statistics: Mapping[str, Tensors]
    """What the stages of statistics have given, by the end of the rounds: ``start``, ``finish``."""
    record: Record
    """The content of ``metrics.json``."""


class CheckpointFile:
    """The checkpoint of one job. It is written atomically, so that a full disk or a crash leaves the last one."""

    def __init__(self, fl_ctx: FLContext, job_id: str, experiment: Experiment):
        """Names the file; nothing is read or written yet.

        Args:
            fl_ctx: of a process of the server.
            job_id: the job's.
            experiment: the job's, which a checkpoint has to be of.
        """
        self._path = Path(fl_ctx.get_engine().get_workspace().root_dir) / FOLDER / f"{job_id}.safetensors"
        self._experiment = experiment

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces what was kept. Raises OSError."""
        tensors = {_NOW + key: value for key, value in checkpoint.tensors.items()}
        tensors |= {_BEST + key: value for key, value in checkpoint.best.items()}
        tensors |= {_OPTIMIZER + key: value for key, value in checkpoint.optimizer.items()}
        for when, gathered in checkpoint.statistics.items():
            tensors |= {_STATISTICS[when] + key: value for key, value in gathered.items()}
        header: dict[str, JsonValue] = {
            "rounds": checkpoint.rounds,
            "record": cast(JsonValue, checkpoint.record),
            "experiment_sha256": self._experiment.digest(),
        }
        save_adapter(self._path, tensors, header)

    def take_over(self, earlier: str) -> None:
        """Copies the checkpoint of the job `earlier`, if it has one and this job has none yet.

        A damaged one is left alone: `load` says so.
        """
        path = self._path_of(earlier)
        if self._path.exists() or not path.exists():
            return
        try:
            tensors, header = load_adapter(path)
            record: JsonValue = header["record"]
        except (UserError, KeyError, TypeError):
            return
        if isinstance(record, dict):
            record["continues"] = earlier
        save_adapter(self._path, tensors, header)

    def load(self) -> Checkpoint | None:
        """Reads what was kept; None if there is nothing.

        Raises:
            UserError: if it is damaged, or of another experiment.
        """
        if not self._path.exists():
            return None
        tensors, header = load_adapter(self._path)
        try:
            rounds, digest = header["rounds"], header["experiment_sha256"]
            record: JsonValue = header["record"]
        except (KeyError, TypeError):
            raise self._damaged() from None
        finished = record.get("rounds") if isinstance(record, dict) else None
        if not isinstance(rounds, int) or not isinstance(finished, list) or len(finished) != rounds:
            raise self._damaged()
        if rounds > self._experiment.federation.rounds:
            raise self._damaged()
        if digest != self._experiment.digest():
            raise UserError(f"{self._path}: is the checkpoint of another experiment than this job's.")
        now, best, optimizer = (_under(prefix, tensors) for prefix in (_NOW, _BEST, _OPTIMIZER))
        statistics = {when: _under(prefix, tensors) for when, prefix in _STATISTICS.items()}
        return Checkpoint(rounds, now, best, optimizer, statistics, cast(Record, record))

    def remove(self) -> None:
        """Removes the checkpoint of a job that has finished, with those of the jobs that it has continued."""
        path: Path | None = self._path
        while path and path.exists():
            earlier = _continued_by(path)
            path.unlink()
            path = self._path_of(earlier) if earlier else None

    def _path_of(self, job_id: str) -> Path:
        """The file of another job; its id is what a header says, and names no other folder."""
        return self._path.with_name(f"{Path(job_id).name}.safetensors")

    def _damaged(self) -> UserError:
        return UserError(f"{self._path}: its header is not that of a checkpoint.")


def _continued_by(path: Path) -> str | None:
    """The job that the one with the checkpoint `path` has continued; None also if the file is damaged."""
    try:
        record: JsonValue = load_header(path)["record"]
    except (UserError, KeyError, TypeError):
        return None
    earlier = record.get("continues") if isinstance(record, dict) else None
    return earlier if isinstance(earlier, str) else None


def _under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose key begins with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
