"""A site's model after its local trainings, its own tensors included, which outlives the worker."""

import logging
from pathlib import Path

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.model.adapter_file import load_adapter, load_header, save_adapter

log = logging.getLogger(__name__)

LOCAL_ADAPTER = "local_adapter.safetensors"
"""After the last training."""
PREVIOUS = "previous_local_adapter.safetensors"
"""After the training of an earlier round: the last round may have to be done again."""


class LocalAdapter:
    """The files of a job at one site."""

    def __init__(self, folder: Path, earlier: Path | None):
        """Args:
        earlier: the folder of the job that this one continues, if it does.
        """
        self._folder = folder
        self._earlier = earlier

    def save(self, tensors: Tensors, header: dict) -> None:
        """Keeps what the training of ``header["round"]`` has made. Raises OSError."""
        path = self._folder / LOCAL_ADAPTER
        there = _round(path)
        if there is not None and there < header["round"]:
            path.replace(self._folder / PREVIOUS)
        save_adapter(path, tensors, header)

    def last(self) -> tuple[Tensors, dict]:
        """What the last training has made, and its header. Raises UserError if there is none."""
        return load_adapter(self._folder / LOCAL_ADAPTER)

    def before(self, round_number: int) -> Tensors:
        """What the last training before that round has made; empty if there is none. A damaged file counts as none, with a
        warning: its site goes on without what it kept, instead of being out of the job.
        """
        folders = [self._folder, self._earlier] if self._earlier else [self._folder]
        rounds = {path: _round(path) for folder in folders for path in (folder / LOCAL_ADAPTER, folder / PREVIOUS)}
        usable = [path for path, number in rounds.items() if number is not None and number < round_number]
        for path in sorted(usable, key=rounds.get, reverse=True):
            try:
                return load_adapter(path)[0]
            except UserError as error:
                log.warning("%s It counts as none.", error)
        return {}


def _round(path: Path) -> int | None:
    """After which round the file was written; None if it is not there, or damaged."""
    if not path.exists():
        return None
    try:
        number = load_header(path)["round"]
        if isinstance(number, int):
            return number
        reason = f"{path}: its header's field 'round' is no number."
    except (UserError, KeyError, TypeError) as error:
        reason = str(error)
    log.warning("%s It counts as none.", reason)
    return None
