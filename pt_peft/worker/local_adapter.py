"""The files in which a site's model, with the tensors that it keeps, outlives the worker."""

import logging
from pathlib import Path
from typing import Any

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.model.adapter_file import load_adapter, load_header, save_adapter

log = logging.getLogger(__name__)

LOCAL_ADAPTER = "local_adapter.safetensors"
"""The model after the last training."""
PREVIOUS = "previous_local_adapter.safetensors"
"""The model after the training of an earlier round, as the last round may have to be done again."""


class LocalAdapter:
    """The files of one job at one site."""

    def __init__(self, folder: Path, earlier: Path | None):
        """Names the folders.

        Args:
            folder: the job's.
            earlier: the folder of the job that this job continues, if any.
        """
        self._folder = folder
        self._earlier = earlier

    def save(self, tensors: Tensors, header: dict[str, Any]) -> None:
        """Keeps the model after the training of ``header["round"]``. Raises OSError."""
        path = self._folder / LOCAL_ADAPTER
        last = _round(path)
        if last is not None and last < header["round"]:
            path.replace(self._folder / PREVIOUS)
        save_adapter(path, tensors, header)

    def last(self) -> tuple[Tensors, dict[str, Any]]:
        """The model after the last training, and its header. Raises UserError if there is none."""
        return load_adapter(self._folder / LOCAL_ADAPTER)

    def before(self, round_number: int) -> tuple[Tensors, int | None]:
        """The model after the last training before that round, and that training's round; empty and None without one.

        A damaged file is skipped with a warning: the site goes on without what it kept, instead of being out of the
        job.
        """
        folders = [self._folder, self._earlier] if self._earlier else [self._folder]
        paths = [folder / name for folder in folders for name in (LOCAL_ADAPTER, PREVIOUS)]
        usable = {path: number for path in paths if (number := _round(path)) is not None and number < round_number}
        for path in sorted(usable, key=lambda path: usable[path], reverse=True):
            try:
                return load_adapter(path)[0], usable[path]
            except UserError as error:
                log.warning("%s It is skipped.", error)
        return {}, None


def _round(path: Path) -> int | None:
    """The round whose training wrote the file; None if the file does not exist or is damaged."""
    if not path.exists():
        return None
    try:
        number = load_header(path)["round"]
        if isinstance(number, int):
            return number
        reason = f"{path}: its header's field 'round' is not a whole number."
    except (UserError, KeyError, TypeError) as error:
        reason = str(error)
    log.warning("%s It is skipped.", reason)
    return None
