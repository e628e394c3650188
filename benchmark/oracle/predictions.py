"""A model's answers on the images of all sites, and how a result keeps them. Imports no torch."""

import base64
import binascii
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pt_peft.experiment.sections import Task
from pt_peft.training.metrics import Metrics, evaluate_predictions

Groups = npt.NDArray[np.uint64]
_KINDS = {"sites": "U", "logits": "f", "labels": "iu", "site": "iu", "group": "u"}
"""Arrays of a packed file, and the kinds of numpy's dtypes that each may have; files of earlier versions lack the
last."""
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, RuntimeError, binascii.Error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What `zipfile` and numpy raise for damaged archives."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits and labels of all sites that have images in a split, site by site in the order of their names."""

    sites: list[str]
    """Names."""
    logits: npt.NDArray[np.floating]
    """Floating point (N,K)."""
    labels: npt.NDArray[np.integer]
    """int64 (N,), or uint8 (N,K) for ``multilabel``."""
    site: npt.NDArray[np.integer]
    """uint16 (N,), positions in `sites`."""
    group: Groups | None = None
    """(N,), `group_numbers` of the images' lesions or patients; images of one group, also of other runs, have the same.
    None where they are not known."""

    def metrics(self, task: Task) -> dict[str, Any]:
        """Metrics of all images under ``pooled`` and of each site's under ``sites``, see `evaluate_predictions`."""
        images = {name: self.site == index for index, name in enumerate(self.sites)}
        return {
            "pooled": self._metrics(np.ones(len(self.site), bool), task),
            "sites": {name: self._metrics(chosen, task) for name, chosen in images.items()},
        }

    def _metrics(self, chosen: npt.NDArray[np.bool_], task: Task) -> Metrics:
        import torch

        return evaluate_predictions(torch.from_numpy(self.logits[chosen]), torch.from_numpy(self.labels[chosen]), task)

    def pack(self) -> str:
        """A compressed ``.npz`` of the arrays, as base64 for a line of JSON."""
        arrays = {"sites": np.array(self.sites), "logits": self.logits, "labels": self.labels, "site": self.site}
        if self.group is not None:
            arrays["group"] = self.group
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return base64.b64encode(file.getvalue()).decode("ascii")

    @classmethod
    def unpack(cls, packed: str) -> "Predictions":
        """Reads what `pack` wrote. Raises ValueError if it is damaged, or if the arrays do not fit together."""
        try:
            arrays = _arrays(base64.b64decode(packed, validate=True))
        except _DAMAGED as error:
            raise ValueError(f"cannot be read as an .npz of sites, logits, labels and site ({error})") from None
        for name, array in arrays.items():
            if array.dtype.kind not in _KINDS[name]:
                raise ValueError(f"array '{name}' has dtype {array.dtype}")
        group = arrays.get("group")
        found = cls(arrays["sites"].tolist(), arrays["logits"], arrays["labels"], arrays["site"], group)
        found._check()
        return found

    def _check(self) -> None:
        logits, labels, site = self.logits, self.labels, self.site
        if (
            logits.ndim != 2
            or not logits.size
            or labels.shape not in (logits.shape, logits.shape[:1])
            or site.shape != logits.shape[:1]
            or (self.group is not None and self.group.shape != site.shape)
        ):
            group = "" if self.group is None else f", group {self.group.shape}"
            raise ValueError(
                f"logits {logits.shape}, labels {labels.shape}, site {site.shape}{group} do not fit together"
            )
        highest = 1 if labels.ndim == 2 else logits.shape[1] - 1
        if not np.isfinite(logits).all() or labels.min() < 0 or labels.max() > highest:
            raise ValueError(f"logits are not all finite, or labels are not within 0 to {highest}")
        if site.min() < 0 or site.max() >= len(self.sites):
            raise ValueError(f"site is not within 0 to {len(self.sites) - 1}")


def _arrays(packed: bytes) -> dict[str, npt.NDArray[Any]]:
    """Reads the arrays of `_KINDS`. Raises one of `_DAMAGED`, also for what is no archive or holds another thing."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        arrays = {name: file[name] for name in _KINDS if name != "group" or name in file}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise TypeError("a member is no array")
    return arrays


def group_numbers(names: Iterable[str]) -> Groups:
    """The first 64 bits of SHA-256 of each group's name: tells groups apart, and names none."""
    return np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names], np.uint64)
