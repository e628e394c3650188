"""A site's model after its local trainings, its own tensors included, which outlives the worker."""

from pathlib import Path

from pt_peft.adapter_file import load_adapter, load_header, save_adapter
from pt_peft.tensors import Tensors

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
        if path.exists() and load_header(path)["round"] < header["round"]:
            path.replace(self._folder / PREVIOUS)
        save_adapter(path, tensors, header)

    def last(self) -> tuple[Tensors, dict]:
        """What the last training has made, and its header. Raises UserError if there is none."""
        return load_adapter(self._folder / LOCAL_ADAPTER)

    def before(self, round_number: int) -> Tensors:
        """What the last training before that round has made; empty if there is none."""
        folders = [self._folder, self._earlier] if self._earlier else [self._folder]
        paths = [path for folder in folders for path in (folder / LOCAL_ADAPTER, folder / PREVIOUS) if path.exists()]
        rounds = {path: load_header(path)["round"] for path in paths}
        usable = [path for path in paths if rounds[path] < round_number]
        return load_adapter(max(usable, key=rounds.get))[0] if usable else {}
