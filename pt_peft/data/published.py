"""Data sets in their published layouts: a folder with tables and images, as unpacked from the archives.

The images may be in any sub-folder, because the publishers' archives differ.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from pt_peft.data.archive import listed_files
from pt_peft.data.delimited import read_rows
from pt_peft.data.items import Item, SplitName
from pt_peft.data.label_values import class_of_value, report_unknown
from pt_peft.data.problems import Report, stop
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data

ISIC2019_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""Columns of the ground truth, in the order of FLamby's ``target``; ``UNK`` has no training image."""

FLAMBY_CENTRES = ("bcn_20000", "vidir_molemax", "vidir_modern", "rosendahl", "msk4", "vienna_dias")
"""Sites of ISIC 2019 by FLamby's ``center`` number (Ogier du Terrail et al. 2022, arXiv:2210.04620)."""

_FOLDS: dict[str, SplitName] = {"train": "train", "test": "test"}
_PREPROCESSED = "ISIC_2019_Training_Input_preprocessed"
_ISIC2019_ARCHIVES = {"BCN": "bcn_20000", "HAM": "ham10000", "MSK": "msk4"}
"""Sites by the first letters of ISIC 2019's ``lesion_id``."""


def read_published(path: Path, data: Data, own: SiteData, report: Report = stop) -> list[Item]:
    """The images of the site's source, in its published split if it has one.

    Args:
        path: the folder with the tables and images.
        data: the experiment's classes.
        own: the source, and the published labels that mean the classes.
        report: takes labels that mean no class, rows without an image or with the image of a row above, and images that
            exist twice.

    Raises:
        UserError: if a table is missing or not as published, or a label means two classes; and what `report` raises.
    """
    if not path.is_dir():
        raise UserError(
            f"{path}: is not a folder; data.source '{own.source}' needs the one with its tables and images."
        )
    class_of = class_of_value(data, own)
    images = _images(path, own.source, report)
    items: dict[str, Item] = {}
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    for where, image, label, split, group, site in _READERS[own.source](path):
        if label not in class_of:
            unknown[label].append(f"'{image}'")
        elif image not in images:
            report("no such image", f"{where}image '{image}' is not in any folder of {path}.")
        elif image in items:
            report("listed twice", f"{where}image '{image}' is also in a row above; list each image once.")
        else:
            # An image without a known lesion is a group of its own.
            items[image] = Item(images[image], (class_of[label],), split, group or image, site, (label,))
    report_unknown(unknown, f"{path}: the label", data, report)
    return list(items.values())


def _images(path: Path, source: str, report: Report) -> dict[str, str]:
    """The files below `path`, by their names without suffix.

    Of several files of one name, those in FLamby's folder of preprocessed images are for ``fed_isic2019`` alone.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in listed_files(path):
        found[Path(name).stem].append(name)
    images: dict[str, str] = {}
    for stem, names in found.items():
        wanted = [name for name in names if (_PREPROCESSED in name) == (source == "fed_isic2019")] or names
        if len(wanted) > 1:
            report(
                "image in two places",
                f"{path}: image '{stem}' is both '{wanted[0]}' and '{wanted[1]}'; keep one of them.",
            )
        images[stem] = wanted[0]
    return images


Row = tuple[str, str, str, SplitName | None, str, str | None]
"""Place in the table (for errors), image, label, split, lesion (may be empty), site."""


def _ham10000(path: Path) -> list[Row]:
    """HAM10000 (Tschandl et al. 2018, doi:10.7910/DVN/DBW86T).

    The Dataverse's table has the acquisition site, ``dataset``; copies from other places do not.
    """
    table = _one_of(path, "HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
    rows = _rows(table, "image_id", "lesion_id", "dx")
    return [
        (f"{table}: line {line}: ", row["image_id"], row["dx"], None, row["lesion_id"], row.get("dataset"))
        for line, row in rows
    ]


def _isic2019(path: Path) -> list[Row]:
    """The training part of the ISIC 2019 challenge.

    Labels and lesions are in two tables. A lesion's name begins with the archive that its images come from.
    """
    metadata = _one_of(path, "ISIC_2019_Training_Metadata.csv")
    lesion = {row["image"]: row["lesion_id"] for _, row in _rows(metadata, "image", "lesion_id")}
    table = _one_of(path, "ISIC_2019_Training_GroundTruth.csv")
    return [
        (
            f"{table}: line {line}: ",
            row["image"],
            _one_hot(row),
            None,
            lesion.get(row["image"], ""),
            _ISIC2019_ARCHIVES.get(lesion.get(row["image"], "")[:3]),
        )
        for line, row in _rows(table, "image", *ISIC2019_CLASSES)
    ]


def _fed_isic2019(path: Path) -> list[Row]:
    """FLamby's Fed-ISIC2019: its table of folds and centres, with its preprocessed images or the original ones.

    FLamby's folds are drawn by image and kept as they are: some lesions are in both. If ISIC's metadata exist,
    validation images are drawn by lesion.
    """
    metadata = path / "ISIC_2019_Training_Metadata.csv"
    lesion = (
        {row["image"]: row["lesion_id"] for _, row in _rows(metadata, "image", "lesion_id")}
        if metadata.exists()
        else {}
    )
    table = _one_of(path, "train_test_split", "train_test_split.csv", "train_test_folds.csv")
    rows: list[Row] = []
    for line, row in _rows(table, "image", "target", "center", "fold"):
        where = f"{table}: line {line}: "
        fold = _FOLDS.get(row["fold"])
        target, centre = _number(row["target"], ISIC2019_CLASSES), _number(row["center"], FLAMBY_CENTRES)
        if target is None or centre is None or fold is None:
            raise UserError(
                f"{where}target {row['target']!r}, center {row['center']!r} and fold {row['fold']!r} should be 0 to 7, "
                "0 to 5 and train or test."
            )
        group = f"{fold} {lesion[row['image']]}" if lesion.get(row["image"]) else ""
        rows.append((where, row["image"], target, fold, group, centre))
    return rows


_READERS: Mapping[str, Callable[[Path], list[Row]]] = {
    "ham10000": _ham10000,
    "isic2019": _isic2019,
    "fed_isic2019": _fed_isic2019,
}


def _rows(table: Path, *columns: str) -> list[tuple[int, dict[str, str]]]:
    return read_rows(table, dict.fromkeys(columns, ""))


def _one_hot(row: Mapping[str, str]) -> str:
    """The class whose column is 1, or how many there are if it is not one."""
    ones = [label for label in (*ISIC2019_CLASSES, "UNK") if row.get(label, "0").strip() in ("1", "1.0")]
    return ones[0] if len(ones) == 1 else f"{len(ones)} classes"


def _number(text: str, names: tuple[str, ...]) -> str | None:
    return names[int(text)] if text.isascii() and text.isdigit() and int(text) < len(names) else None


def _one_of(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: has no table {' or '.join(names)}, which the published data set has.")
