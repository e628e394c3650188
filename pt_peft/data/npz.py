"""MedMNIST-style ``.npz`` files, read without unpickling and one image at a time."""

import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.errors import UserError

_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz_items(path: Path, classes: Sequence[str], multilabel: bool = False) -> list[Item]:
    """The images of an ``.npz``, split by split in the file's order; reads only the labels and the images' headers.

    The file holds, for each split, ``<split>_images`` uint8 (N,H,W) or (N,H,W,3) and ``<split>_labels``: integers (N,)
    or (N,1) that index `classes`, or, if `multilabel`, zeros and ones (N, classes).

    Args:
        path: the file.
        classes: the experiment's class names.
        multilabel: whether an image has any number of classes.

    Raises:
        UserError: if it is not such a file.
    """
    with _open(path) as archive:
        wanted = {f"{split}_{part}" for split in SPLITS for part in ("images", "labels")}
        there = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        if missing := sorted(wanted - there):
            raise UserError(
                f"{path}: has no array '{missing[0]}'; its arrays are {', '.join(sorted(there)) or 'none'}."
            )
        items: list[Item] = []
        for split in SPLITS:
            labels = _labels(archive, path, split, classes, multilabel)
            with _member(archive, f"{split}_images") as file:
                shape = _images_header(file, path, split)
            if shape[0] != len(labels):
                raise UserError(f"{path}: has {shape[0]} {split}_images but {len(labels)} {split}_labels.")
            names = (f"{split}/{index}" for index in range(len(labels)))
            items += [Item(name, label, split, name) for name, label in zip(names, labels, strict=True)]
        return items


def read_npz_images(path: Path, split: SplitName, names: Collection[str]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields images of a split, uint8 (H,W) or (H,W,3), in the file's order.

    One image is in memory at a time: at 224 px some MedMNIST files unpack to more than 10 GB.

    Args:
        path: the file.
        split: the split.
        names: the images to yield, as `Item.file` names them.

    Raises:
        UserError: if the pixels are damaged.
    """
    with _open(path) as archive, _member(archive, f"{split}_images") as file:
        count, *shape = _images_header(file, path, split)
        for index in range(count):
            data = _pixels(file, math.prod(shape), f"{path}: {split}_images[{index}]")
            if f"{split}/{index}" in names:
                yield np.frombuffer(bytearray(data), np.uint8).reshape(shape)


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as an .npz file ({error}).") from None


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy")


def _pixels(file: IO[bytes], count: int, where: str) -> bytes:
    try:
        data = file.read(count)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{where} cannot be read ({error}); the file is damaged.") from None
    if len(data) != count:
        raise UserError(f"{where} has {len(data)} of its {count} bytes; the file is damaged.")
    return data


def _images_header(file: IO[bytes], path: Path, split: str) -> tuple[int, ...]:
    """The shape of ``<split>_images``, checked; leaves `file` at the first pixel. Raises UserError."""
    right = "it should be uint8 (N,H,W) or (N,H,W,3) in C order"
    try:
        shape, fortran_order, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {split}_images cannot be read ({error}); {right}.") from None
    grey_or_rgb = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if dtype != np.uint8 or not grey_or_rgb or fortran_order or 0 in shape[1:]:
        order = " in Fortran order" if fortran_order else ""
        raise UserError(f"{path}: {split}_images is {dtype} {shape}{order}; {right}.")
    return shape


def _labels(
    archive: zipfile.ZipFile, path: Path, split: str, classes: Sequence[str], multilabel: bool
) -> list[tuple[int, ...]]:
    single = "integers (N,) or (N,1)"
    many = f"zeros and ones (N,{len(classes)}), a column for each of the experiment's data.classes"
    right = f"it should be {many if multilabel else single}"
    try:
        with _member(archive, f"{split}_labels") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {split}_labels cannot be read ({error}); {right}.") from None
    shapes = [(len(classes),)] if multilabel else [(), (1,)]
    if labels.dtype.kind not in "iub" or not labels.ndim or labels.shape[1:] not in shapes:
        other = (
            " (data.task 'multilabel' would take it)" if not multilabel and labels.shape[1:] == (len(classes),) else ""
        )
        raise UserError(f"{path}: {split}_labels is {labels.dtype} {labels.shape}{other}; {right}.")
    if multilabel:
        outside = np.argwhere((labels != 0) & (labels != 1))
        if len(outside):
            row, column = outside[0]
            raise UserError(f"{path}: {split}_labels[{row}, {column}] is {labels[row, column]}; {right}.")
        return [tuple(np.flatnonzero(row).tolist()) for row in labels]
    labels = labels.reshape(-1).astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        row = outside[0]
        raise UserError(
            f"{path}: {split}_labels[{row}] is {labels[row]}; it should be 0 to {len(classes) - 1}, an index into the"
            f" experiment's data.classes ({', '.join(classes)})."
        )
    return [(label,) for label in labels.tolist()]
