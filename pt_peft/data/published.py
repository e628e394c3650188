"""Data sets in their published layouts: a folder with tables and images, as unpacked from the archives.

The images may be in any sub-folder, because the publishers' archives differ.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pt_peft.data.archive import open_archive
from pt_peft.data.delimited import read_rows
from pt_peft.data.items import Item, SplitName
from pt_peft.data.label_values import class_of_value, report_left_out, report_unknown
from pt_peft.data.listing import listed_files, plain_name, same_content, shown
from pt_peft.data.names import clean
from pt_peft.data.problems import Report, Tally, not_taken, stop
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data

ISIC2019_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""Columns of the ground truth, in the order of FLamby's ``target``; ``UNK`` has no training image."""

FLAMBY_CENTRES = ("bcn_20000", "vidir_molemax", "vidir_modern", "rosendahl", "msk4", "vienna_dias")
"""Sites of ISIC 2019 by FLamby's ``center`` number (Ogier du Terrail et al. 2022, arXiv:2210.04620)."""

_FOLDS: dict[str, SplitName] = {"train": "train", "test": "test"}
_PREPROCESSED = "ISIC_2019_Training_Input_preprocessed"
_ISIC2019_METADATA = "ISIC_2019_Training_Metadata.csv"
_ISIC2019_ARCHIVES = {"BCN": "bcn_20000", "HAM": "ham10000", "MSK": "msk4"}
"""Sites by the first letters of ISIC 2019's ``lesion_id``."""


def read_published(path: Path, data: Data, own: SiteData, report: Report = stop) -> list[Item]:
    """The images of the site's source, in its published split if it has one.

    A site that does not share its images may have those of some centres alone: rows of a centre of which it has no
    image are left out.

    Args:
        path: the folder with the tables and images.
        data: the experiment's classes.
        own: the source, the published labels that mean the classes, and whether sites share the images.
        report: takes labels that mean no class, and for each cause the rows that are left out; what `listed_files`
            reports, and files that are not used.

    Raises:
        UserError: if a table is missing or not as published, there is none of its images, or a label means two classes;
            and what `report` raises.
    """
    if not path.is_dir():
        raise UserError(
            f"{path}: is not a folder; data.source '{own.source}' needs the one with its tables and images."
        )
    class_of = class_of_value(data, own)
    left_out = {clean(value) for value in own.leave_out}
    tables, rows = _READERS[own.source](path)
    table = tables[0]
    files = _files(path, own.source, {row.image for row in rows}, tables, report)
    here = {row.site for row in rows if row.image in files}
    if not here:
        raise UserError(f"{path}: has none of the {len(rows)} images that {table} lists.")
    tally = Tally(str(table), "rows")
    items: dict[str, Item] = {}
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    elsewhere = [] if own.pooled else [row for row in rows if row.site not in here]
    for row in rows:
        where = f"'{row.image}' in line {row.line}"
        if row.site not in here and not own.pooled:
            continue
        if row.label in left_out:
            counts[row.label] += 1
        elif row.label not in class_of:
            unknown[row.label].append(f"'{row.image}'")
        elif row.image not in files:
            pooled = "; a site that has its own centre alone is not 'pooled' in site.json" if own.pooled else ""
            tally.add("no such image", f"their images are not in any folder of {path}{pooled}", where)
        elif row.image in items:
            tally.add("listed twice", "a row above has the same image; list each image once", where)
        else:
            # An image without a known lesion is a group of its own.
            group = row.lesion or row.image
            items[row.image] = Item(files[row.image], (class_of[row.label],), row.split, group, row.site, (row.label,))
    _report_elsewhere(elsewhere, len(rows), table, report)
    tally.report(len(rows), report)
    report_left_out(counts, len(rows), str(table), "rows", report)
    report_unknown(unknown, f"{path}: the label", data, report)
    return list(items.values())


def _report_elsewhere(rows: Sequence["_Row"], of: int, table: Path, report: Report) -> None:
    """Warns of rows of centres that have no image here, if there are any."""
    if rows:
        centres = Counter(row.site or "no known centre" for row in rows)
        counted = ", ".join(f"{name} {count}" for name, count in centres.most_common())
        cause = f"the site has no image of their centres ({counted})"
        names = [f"'{row.image}' in line {row.line}" for row in rows]
        report("other centres", f"{table}: {not_taken(names, of, 'rows', cause)}.", "warning")


def _files(
    path: Path, source: str, wanted: Collection[str], tables: Collection[Path], report: Report
) -> dict[str, str]:
    """The files below `path` of the images `wanted`, by their names without suffix.

    Of several files of one name, those in FLamby's folder of preprocessed images are for ``fed_isic2019`` alone. Of
    copies, which Kaggle's archives have in doubled folders, the first is taken.
    """
    listed = listed_files(path, report, tables)
    of_image: dict[str, list[str]] = defaultdict(list)
    tally = Tally(str(path), "images")
    for file in listed:
        image = Path(plain_name(file)).stem
        if image in wanted:
            of_image[image].append(file)
        else:
            tally.add("image without a row", "no row of the tables has them", shown(file), "warning")
    with open_archive(path) as open_image:
        for files in of_image.values():
            files.sort(key=lambda file: (_PREPROCESSED in file) != (source == "fed_isic2019"))
            first, *others = files
            for file in others:
                if (_PREPROCESSED in file) != (_PREPROCESSED in first):
                    which = "FLamby's preprocessed ones" if source == "fed_isic2019" else "the published ones"
                    tally.add("not taken", f"of images that are also preprocessed, {which} are", shown(file), "warning")
                elif same_content(open_image, first, file):
                    tally.add("not taken", "they are copies of others of their name", shown(file), "warning")
                else:
                    tally.add(
                        "image in two places",
                        "others of their name have other content; keep one of them",
                        f"{shown(file)} beside {shown(first)}",
                    )
    tally.report(len(listed), report)
    return {image: files[0] for image, files in of_image.items()}


class _Row(NamedTuple):
    """A row of a table."""

    line: int
    image: str
    label: str
    split: SplitName | None
    lesion: str
    """May be empty."""
    site: str | None


class _Published(NamedTuple):
    """What the tables of a data set say."""

    tables: tuple[Path, ...]
    """The first lists the images."""
    rows: list[_Row]


def _ham10000(path: Path) -> _Published:
    """HAM10000 (Tschandl et al. 2018, doi:10.7910/DVN/DBW86T).

    The Dataverse's table has the acquisition site, ``dataset``; copies from other places do not.
    """
    table = _table(path, "HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
    rows = _rows(table, "image_id", "lesion_id", "dx")
    return _Published(
        (table,),
        [_Row(line, row["image_id"], row["dx"], None, row["lesion_id"], row.get("dataset")) for line, row in rows],
    )


def _isic2019(path: Path) -> _Published:
    """The training part of the ISIC 2019 challenge.

    Labels and lesions are in two tables. A lesion's name begins with the archive that its images come from.
    """
    metadata = _table(path, _ISIC2019_METADATA)
    lesion = _isic2019_lesions(metadata)
    table = _table(path, "ISIC_2019_Training_GroundTruth.csv")
    rows: list[_Row] = []
    for line, row in _rows(table, "image", *ISIC2019_CLASSES):
        of = lesion.get(row["image"], "")
        rows.append(_Row(line, row["image"], _one_hot(row), None, of, _ISIC2019_ARCHIVES.get(of[:3])))
    return _Published((table, metadata), rows)


def _isic2019_lesions(metadata: Path) -> dict[str, str]:
    return {row["image"]: row["lesion_id"] for _, row in _rows(metadata, "image", "lesion_id")}


def _fed_isic2019(path: Path) -> _Published:
    """FLamby's Fed-ISIC2019: its table of folds and centres, with its preprocessed images or the original ones.

    FLamby's folds are drawn by image and kept as they are: some lesions are in both. If ISIC's metadata exist,
    validation images are drawn by lesion.
    """
    metadata = _find(path, _ISIC2019_METADATA)
    lesion = _isic2019_lesions(metadata) if metadata else {}
    table = _table(path, "train_test_split", "train_test_split.csv", "train_test_folds.csv")
    rows: list[_Row] = []
    for line, row in _rows(table, "image", "target", "center", "fold"):
        fold = _FOLDS.get(row["fold"])
        target, centre = _number(row["target"], ISIC2019_CLASSES), _number(row["center"], FLAMBY_CENTRES)
        if target is None or centre is None or fold is None:
            raise UserError(
                f"{table}: line {line}: target {row['target']!r}, center {row['center']!r} and fold {row['fold']!r} "
                "should be 0 to 7, 0 to 5 and train or test."
            )
        group = f"{fold} {lesion[row['image']]}" if lesion.get(row["image"]) else ""
        rows.append(_Row(line, row["image"], target, fold, group, centre))
    return _Published((table, metadata) if metadata else (table,), rows)


_READERS: Mapping[str, Callable[[Path], _Published]] = {
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


def _table(folder: Path, *names: str) -> Path:
    """The table of one of `names`, see `_find`. Raises UserError if there is none."""
    table = _find(folder, *names)
    if table is None:
        raise UserError(f"{folder}: has no table {' or '.join(names)}, which the published data set has.")
    return table


def _find(folder: Path, *names: str) -> Path | None:
    """The file of one of `names` in `folder` or in a folder within it."""
    with os.scandir(folder) as entries:
        folders = [folder, *sorted(Path(entry.path) for entry in entries if entry.is_dir())]
    return next((one / name for one in folders for name in names if (one / name).is_file()), None)
