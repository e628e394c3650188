"""The adapter file: exchanged tensors as safetensors with a JSON header. Imports no torch, unpickles nothing."""

import json
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pt_peft import __version__
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors, safetensors_bytes
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.prevalence import learnt_prevalence
from pt_peft.experiment.sections import Precision
from pt_peft.files import write_atomically

HEADER_KEY = "pt_peft"
"""Key of the header in the metadata of safetensors."""
Header = dict[str, Any]
"""The header of an adapter file: JSON. ``model`` is a `ModelSpec`, ``preprocessing`` a `Preprocessing`; writers add
fields of its own."""


def adapter_header(experiment: Experiment, precisions: Collection[Precision] = ()) -> Header:
    """The fields that every adapter file of `experiment` has in its header.

    Args:
        experiment: what was run.
        precisions: all in which those who trained the tensors computed. Empty: who writes the file knows only what the
            experiment says, which is nothing if ``training.precision`` is ``auto``.
    """
    asked = experiment.training.precision
    return {
        "precision": sorted(precisions or {asked} - {"auto"}),
        "model": experiment.model.model_dump(mode="json"),
        "preprocessing": experiment.preprocessing.model_dump(mode="json"),
        "learnt_prevalence": learnt_prevalence(experiment),
        "experiment": experiment.name,
        "experiment_sha256": experiment.digest(),
        "version": __version__,
    }


def save_adapter(path: Path, tensors: Tensors, header: Header) -> None:
    """Writes an adapter file atomically.

    Args:
        path: the file; its folder is made if it does not exist.
        tensors: by canonical key.
        header: the header.

    Raises:
        OSError: if `path` cannot be written; an earlier file of that name is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {HEADER_KEY: json.dumps(header, sort_keys=True)}
    write_atomically(path, safetensors_bytes(tensors, metadata))


def load_adapter(path: Path) -> tuple[Tensors, Header]:
    """Reads a file that `save_adapter` wrote.

    Returns:
        The tensors by key, and the header.

    Raises:
        UserError: if the file is not there, is not safetensors, or does not have a header of `save_adapter`.
    """
    with _opened(path) as (file, header):
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118  # safe_open is no mapping


def load_header(path: Path) -> Header:
    """Reads the header alone, which takes no longer for a large file. Raises UserError as `load_adapter` does."""
    with _opened(path) as (_, header):
        return header


@contextmanager
def _opened(path: Path) -> Generator[tuple[safe_open, Header]]:
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
