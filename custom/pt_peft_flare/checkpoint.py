"""What a server keeps outside a job's folder to continue it: a clone of a job that broke off starts where it ended."""

from dataclasses import dataclass
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.adapter_file import load_adapter, load_header, save_adapter

FOLDER = "checkpoints"
"""In the server's workspace; one file a job that has not finished."""
_NOW, _BEST, _OPTIMIZER = "now/", "best/", "optimizer/"
"""What stands before the keys in the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A job after some of its rounds."""

    rounds: int
    """How many are finished."""
    tensors: Tensors
    """What they have changed."""
    best: Tensors
    """The best aggregate so far; empty if there is none."""
    optimizer: Tensors
    """The state of the server's optimiser."""
    record: dict
    """The content of ``metrics.json``."""


class CheckpointFile:
    """The checkpoint of one job. Written atomically, so that a full disk or a crash leaves the last one."""

    def __init__(self, fl_ctx: FLContext, job_id: str, experiment: Experiment):
        self._path = Path(fl_ctx.get_engine().get_workspace().root_dir) / FOLDER / f"{job_id}.safetensors"
        self._experiment = experiment

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces what was kept. Raises OSError."""
        tensors = {_NOW + key: value for key, value in checkpoint.tensors.items()}
        tensors |= {_BEST + key: value for key, value in checkpoint.best.items()}
        tensors |= {_OPTIMIZER + key: value for key, value in checkpoint.optimizer.items()}
        header = {
            "rounds": checkpoint.rounds,
            "record": checkpoint.record,
            "experiment_sha256": self._experiment.digest(),
        }
        save_adapter(self._path, tensors, header)

    def take_over(self, earlier: str) -> None:
        """Starts from what the job `earlier` has left, if it has and this one has nothing yet; a damaged one is left alone, for
        `load` to say so.
        """
        path = self._of(earlier)
        if self._path.exists() or not path.exists():
            return
        try:
            tensors, header = load_adapter(path)
        except UserError:
            return
        if isinstance(header, dict) and isinstance(header.get("record"), dict):
            header["record"]["continues"] = earlier
        save_adapter(self._path, tensors, header)

    def load(self) -> Checkpoint | None:
        """What was kept; None if there is nothing.

        Raises:
            UserError: if it is damaged, or of another experiment.
        """
        if not self._path.exists():
            return None
        tensors, header = load_adapter(self._path)
        try:
            rounds, record, digest = header["rounds"], header["record"], header["experiment_sha256"]
            whole = 0 <= rounds <= self._experiment.federation.rounds and len(record["rounds"]) == rounds
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(f"{self._path}: its header is not that of a checkpoint.")
        if digest != self._experiment.digest():
            raise UserError(f"{self._path}: is the checkpoint of another experiment than this job's.")
        now, best, optimizer = (_among(tensors, prefix) for prefix in (_NOW, _BEST, _OPTIMIZER))
        return Checkpoint(rounds, now, best, optimizer, record)

    def remove(self) -> None:
        """Once the job has finished, with those of the jobs that it has continued."""
        path: Path | None = self._path
        while path and path.exists():
            try:
                earlier = load_header(path)["record"]["continues"]
            except (UserError, KeyError, TypeError):  # damaged: nobody knows what it continues
                earlier = None
            path.unlink()
            path = self._of(earlier) if earlier else None

    def _of(self, job_id: object) -> Path:
        """The file of another job; its id is what a header says, and names no other folder."""
        return self._path.with_name(f"{Path(str(job_id)).name}.safetensors")


def _among(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
