"""MedMNIST-style ``.npz`` files, read without unpickling and one image at a time."""

import math
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.data.label_values import class_of_value, report_left_out, report_unknown
from pt_peft.data.problems import Report, not_taken, stop
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data

_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz_items(path: Path, data: Data, own: SiteData, report: Report = stop) -> list[Item]:
    """The images of an ``.npz``, split by split in the file's order; reads only the labels and the images' headers.

    The file holds, for each split, ``<split>_images`` uint8 (N,H,W) or (N,H,W,3) and ``<split>_labels``: integers (N,)
    or (N,1), or for ``multilabel`` zeros and ones (N,values). A value is such an integer, or the number of a column.

    Args:
        path: the file.
        data: the experiment's classes and task.
        own: the values that mean the classes.
        report: takes values that mean no class, and as warnings what ``data.leave_out`` leaves out, and arrays that are
            not read.

    Raises:
        UserError: if it is not such a file, or a value means two classes; and what `report` raises.
    """
    class_of = class_of_value(data, own)
    left_out = set(own.leave_out)
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    with _open(path) as archive:
        wanted = {f"{split}_{part}" for split in SPLITS for part in ("images", "labels")}
        there = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        if missing := sorted(wanted - there):
            raise UserError(
                f"{path}: has no array '{missing[0]}'; its arrays are {', '.join(sorted(there)) or 'none'}."
            )
        if others := [f"'{name}'" for name in sorted(there - wanted)]:
            cause = f"those of an .npz are {', '.join(sorted(wanted))}"
            report("not taken", f"{path}: {not_taken(others, len(there), 'arrays', cause)}.", "warning")
        items: list[Item] = []
        images = 0
        for split in SPLITS:
            columns = len(class_of) + len(left_out) if data.task == "multilabel" else None
            labels = _labels(archive, path, split, columns)
            with _member(archive, f"{split}_images") as file:
                shape = _images_header(file, path, split)
            if shape[0] != len(labels):
                raise UserError(f"{path}: has {shape[0]} {split}_images but {len(labels)} {split}_labels.")
            images += len(labels)
            for row, values in enumerate(labels):
                name = f"{split}/{row}"
                if unwanted := left_out.intersection(values):
                    counts.update(unwanted)
                    if data.task != "multilabel":
                        continue
                    values = tuple(value for value in values if value not in unwanted)
                if strange := [value for value in values if value not in class_of]:
                    unknown[strange[0]].append(f"{split}_labels[{row}]")
                else:
                    classes = tuple(sorted({class_of[value] for value in values}))
                    items.append(Item(name, classes, split, name, values=values))
        report_left_out(counts, images, str(path), "images", report)
        report_unknown(unknown, f"{path}: the label", data, report)
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


def _labels(archive: zipfile.ZipFile, path: Path, split: str, columns: int | None) -> list[tuple[str, ...]]:
    """The values of each image. `columns` is their number for ``multilabel``, else None. Raises UserError."""
    single, many = (
        "integers (N,) or (N,1)",
        f"zeros and ones (N,{columns}), a column for each value of data.classes and data.leave_out",
    )
    right = f"it should be {single if columns is None else many}"
    try:
        with _member(archive, f"{split}_labels") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {split}_labels cannot be read ({error}); {right}.") from None
    shapes = [(), (1,)] if columns is None else [(columns,)]
    if labels.dtype.kind not in "iub" or not labels.ndim or labels.shape[1:] not in shapes:
        other = " (data.task 'multilabel' would take it)" if columns is None and labels.ndim == 2 else ""
        raise UserError(f"{path}: {split}_labels is {labels.dtype} {labels.shape}{other}; {right}.")
    if columns is None:
        return [(str(label),) for label in labels.reshape(-1).astype(np.int64).tolist()]
    outside = np.argwhere((labels != 0) & (labels != 1))
    if len(outside):
        row, column = outside[0]
        raise UserError(f"{path}: {split}_labels[{row}, {column}] is {labels[row, column]}; {right}.")
    return [tuple(str(column) for column in np.flatnonzero(row)) for row in labels]
