"""Reads each image as its file stores it: content, size and intensities, before any transform.

Importing this module imports MONAI (seconds).
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from tqdm import tqdm

from pt_peft.data import archive, npz
from pt_peft.data.frames import located
from pt_peft.data.items import SPLITS, Item
from pt_peft.data.problems import Remark, log_remark
from pt_peft.data.stored import described, stored_image
from pt_peft.data.transforms import LONGEST, to_rgb
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.own_images import Frames
from pt_peft.experiment.sections import Intensity
from pt_peft.experiment.site import Site


@dataclass(frozen=True, slots=True)
class Probe:
    """The properties of one image."""

    sha256: str
    """Digest of the file's bytes and the frame; of the pixels for ``npz``."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mode: str
    """Pillow's mode."""
    deep: bool
    """Whether the file has 16 bits a channel. False for DICOM, which is 8 bits as displayed."""
    low: float
    """Lowest value, as stored or as DICOM displays it."""
    high: float
    """Highest value, as stored or as DICOM displays it."""
    mean: tuple[float, ...]
    """Mean of red, green and blue as training decodes them, in [0,1]."""
    std: tuple[float, ...]
    """Standard deviation of red, green and blue."""
    two_values: bool
    """Whether every value is the lowest or the highest, and both are there."""
    patient: str | None = None
    """DICOM's patient ID; None where it has none."""
    remarks: tuple[tuple[str, str], ...] = ()
    """What is odd about the image: kinds and words, see `pt_peft.data.problems.Remark`."""


def probe_all(experiment: Experiment, site: Site, items: Sequence[Item]) -> Iterator[tuple[Item, Probe | str]]:
    """Yields each image with its properties, or with the reason why it cannot be read; shows the progress.

    Args:
        experiment: how the images are decoded.
        site: where the images are.
        items: the images.

    Raises:
        UserError: if the folder, archive or ``.npz`` as a whole cannot be read.
    """
    intensity = experiment.data.intensity
    with tqdm(total=len(items), unit="image", desc="reading images", disable=None) as progress:
        if site.data.source == "npz":
            found = _of_npz(site.existing("data.npz"), items, intensity)
        else:
            found = _of_files(site.existing("data.images"), items, intensity, site.data.frames)
        for one in found:
            progress.update()
            yield one


def probe(data: bytes, intensity: Intensity, frame: int | None = None) -> Probe | str:
    """The properties of the image in a file, or the reason why it cannot be decoded.

    Args:
        data: the file's bytes.
        intensity: see `pt_peft.data.transforms.to_rgb`.
        frame: see `pt_peft.data.stored.stored_image`.
    """
    remarks: list[tuple[str, str]] = []

    def remark(kind: str, what: str) -> None:
        remarks.append((kind, what))

    try:
        image = stored_image(io.BytesIO(data), frame, remark)
        deep = _is_deep(image)
        image.load()
        digest = hashlib.sha256(data)
        if frame is not None:
            digest.update(f"#{frame}".encode())
        measured = _measured(image, deep, digest.hexdigest(), intensity, remark)
        return replace(measured, patient=described(io.BytesIO(data)).patient, remarks=tuple(remarks))
    except UnidentifiedImageError:
        return "it is no image of a known format"
    except Exception as error:  # decoders raise anything for a damaged file
        return " ".join(str(error).split())[:LONGEST] or type(error).__name__


def _is_deep(image: Image.Image) -> bool:
    """Whether the file of an image that is not loaded yet has 16 bits a channel."""
    # Of colours of 16 bits, Pillow reads the upper 8 into an image of mode RGB; the raw mode tells them.
    raw = [str(tile.args) for tile in image.tile] if isinstance(image, ImageFile) else []
    return image.mode.startswith("I;16") or any(";16" in mode for mode in raw)


def _of_files(
    path: Path, items: Sequence[Item], intensity: Intensity, frames: Frames
) -> Iterator[tuple[Item, Probe | str]]:
    with (
        archive.open_archive(path) as open_image,
        ThreadPoolExecutor() as pool,
    ):  # decoders release the interpreter's lock
        step = 8 * (os.cpu_count() or 1)  # files in memory at a time
        for start in range(0, len(items), step):
            batch = items[start : start + step]
            places = [located(item.file, frames) for item in batch]
            contents = [(_content(open_image, file), frame) for file, frame in places]
            jobs = [
                one if isinstance(one, str) else pool.submit(probe, one, intensity, frame) for one, frame in contents
            ]
            for item, job in zip(batch, jobs, strict=True):
                yield item, job if isinstance(job, str) else job.result()


def _content(open_image: archive.OpenArchive, name: str) -> bytes | str:
    """The file's bytes, or the reason why it cannot be read."""
    try:
        with open_image(name) as stream:
            return stream.read()
    except (KeyError, FileNotFoundError):
        return "there is no such file"
    except Exception as error:
        return " ".join(str(error).split())[:200]


def _of_npz(path: Path, items: Sequence[Item], intensity: Intensity) -> Iterator[tuple[Item, Probe | str]]:
    for split in SPLITS:
        mine = {item.file: item for item in items if item.split == split}
        if mine:
            for item, array in zip(mine.values(), npz.read_npz_images(path, split, mine), strict=True):
                digest = hashlib.sha256(array.tobytes()).hexdigest()
                yield item, _measured(Image.fromarray(array), False, digest, intensity, log_remark)


def _measured(image: Image.Image, deep: bool, sha256: str, intensity: Intensity, remark: Remark) -> Probe:
    stored = np.asarray(image)
    shown = np.asarray(to_rgb(image, intensity, remark), np.float32).reshape(-1, 3) / 255
    low, high = stored.min(), stored.max()
    return Probe(
        sha256,
        image.width,
        image.height,
        image.mode,
        deep,
        float(low),
        float(high),
        tuple(shown.mean(axis=0).tolist()),
        tuple(shown.std(axis=0).tolist()),
        bool(low < high and ((stored == low) | (stored == high)).all()),
    )
