"""Keeps the models' answers, so that a killed audit goes on with them."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmark.membership.models import Design, Observed, Subject
from pt_peft.code_key import code_key
from pt_peft.data.site_data import SiteData
from pt_peft.files import write_atomically


def fingerprint(sites: Mapping[str, SiteData]) -> str:
    """SHA-256 of the sites' names and of their training images and labels, in hex."""
    digest = hashlib.sha256()
    for name, data in sorted(sites.items()):
        digest.update(json.dumps([name, data.train.images.shape, str(data.train.labels.dtype)]).encode())
        for array in (data.train.images, data.train.labels):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Kept:
    """A folder of ``.npz`` files, one a model of a subject."""

    def __init__(self, folder: Path, design: Design):
        self._folder = folder
        self._design = design

    def read(self, subject: Subject, images: str, model: int) -> Observed | None:
        """The answers of `model`; None if it has none for this experiment, design and images, or a damaged file.

        Args:
            subject: the experiment.
            images: their `fingerprint`.
            model: its index.
        """
        identity = self._identity(subject, images, model)
        path = self._path(identity)
        try:
            # Opened here: numpy leaves open what it cannot read.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                if str(arrays["identity"]) == identity:
                    return Observed(arrays["members"], arrays["confidences"], arrays["right"], float(arrays["seconds"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            pass
        return None

    def write(self, subject: Subject, images: str, model: int, observed: Observed) -> None:
        """Keeps the answers of `model`. Raises OSError."""
        identity = self._identity(subject, images, model)
        file = io.BytesIO()
        np.savez_compressed(file, identity=np.array(identity), **asdict(observed))
        write_atomically(self._path(identity), file.getvalue())

    def _identity(self, subject: Subject, images: str, model: int) -> str:
        """What a model's answers depend on: not the number of shadows, so that an audit with more shadows goes on."""
        code = code_key("benchmark.membership.models", "pt_peft.methods")
        known = {"experiment": subject.experiment.digest(), "images": images, "code": code, "model": model}
        fields = {**known, **asdict(self._design)}
        del fields["shadows"]
        return json.dumps(fields, sort_keys=True)

    def _path(self, identity: str) -> Path:
        return self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
