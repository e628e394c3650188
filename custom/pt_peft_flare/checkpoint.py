"""What a server keeps outside a job's folder to continue it: a clone of a job that broke off starts where it ended."""

from dataclasses import dataclass
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from pt_peft.adapter_file import load_adapter, load_header, save_adapter
from pt_peft.errors import UserError
from pt_peft.experiment import Experiment
from pt_peft.tensors import Tensors

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
        header = {"rounds": checkpoint.rounds, "record": checkpoint.record, "experiment_sha256": self._experiment.digest()}
        save_adapter(self._path, tensors, header)

    def load(self) -> Checkpoint | None:
        """What was kept; None if there is nothing.

        Raises:
            UserError: if it is damaged, or of another experiment.
        """
        if not self._path.exists():
            return None
        tensors, header = load_adapter(self._path)
        if header["experiment_sha256"] != self._experiment.digest():
            raise UserError(f"{self._path}: is the checkpoint of another experiment than this job's.")
        now, best, optimizer = (_among(tensors, prefix) for prefix in (_NOW, _BEST, _OPTIMIZER))
        return Checkpoint(header["rounds"], now, best, optimizer, header["record"])

    def remove(self) -> None:
        """Once the job has finished, with those of the jobs that it has continued."""
        path = self._path
        while path.exists():
            continues = load_header(path)["record"]["continues"]
            path.unlink()
            path = path.with_name(f"{continues}.safetensors")


def _among(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
