"""The adapter file: exchanged tensors as safetensors with a JSON header. Imports no torch, unpickles nothing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pt_peft import __version__
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors, safetensors_bytes
from pt_peft.experiment.experiment import Experiment
from pt_peft.files import write_atomically

HEADER_KEY = "pt_peft"


def adapter_header(experiment: Experiment) -> dict:
    """What every adapter file says of the experiment it comes from; `ModelSpec` is under ``model``."""
    return {
        "model": experiment.model.model_dump(mode="json"),
        "experiment": experiment.name,
        "experiment_sha256": experiment.digest(),
        "version": __version__,
    }


def save_adapter(path: Path, tensors: Tensors, header: dict) -> None:
    """Writes `tensors` (by canonical key) and `header` (JSON-serialisable) to `path` atomically, making its folder if need
    be.

    Raises:
        OSError: if `path` cannot be written; a file that was there is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {HEADER_KEY: json.dumps(header, sort_keys=True)}
    write_atomically(path, safetensors_bytes(tensors, metadata))


def load_adapter(path: Path) -> tuple[Tensors, dict]:
    """Reads what `save_adapter` wrote.

    Returns:
        The tensors by key, and the header.

    Raises:
        UserError: if the file is not there, is not safetensors, or has no header of ours.
    """
    with _opened(path) as (file, header):
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118  # safe_open is no mapping


def load_header(path: Path) -> dict:
    """The header alone, whatever the size of the file. Raises UserError as `load_adapter`."""
    with _opened(path) as (_, header):
        return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file, json.loads((file.metadata() or {})[HEADER_KEY])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except SafetensorError as error:
        raise UserError(f"{path}: is not a safetensors file ({error}).") from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds a tensor that numpy cannot ({error}).") from None
    except (KeyError, ValueError, RecursionError):
        raise UserError(
            f"{path}: has no '{HEADER_KEY}' header, so it is not an adapter written by this project."
        ) from None
