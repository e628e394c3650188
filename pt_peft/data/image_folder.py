"""A folder or zip archive with a sub-folder for each class, in or around sub-folders for the splits or without them."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pt_peft.data.archive import open_archive
from pt_peft.data.items import Item, SplitName
from pt_peft.data.label_values import class_of_value, report_left_out, report_unknown
from pt_peft.data.listing import listed_files, plain_name, same_content, shown
from pt_peft.data.names import clean
from pt_peft.data.problems import Report, Tally, some_of, stop
from pt_peft.data.splits import split_named
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data


def read_image_folder(path: Path, data: Data, own: SiteData, report: Report = stop) -> list[Item]:
    """The images in ``<value>/…``, ``<split>/<value>/…`` or ``<value>/<split>/…``; each is a group of its own.

    There may be folders around these.

    Args:
        path: the folder or zip archive.
        data: the experiment's classes.
        own: the values that mean them.
        report: takes images outside of such folders, folders whose name means no class, and what `listed_files`
            reports; and as warnings what ``data.leave_out`` leaves out, a copy of the whole folder within it, and
            folders below the classes, which may be patients.

    Raises:
        UserError: if `path` is neither a folder nor a zip archive, has no images, or has images both in splits and
            outside, or a value means two classes; and what `report` raises.
    """
    class_of = class_of_value(data, own)
    left_out = {clean(value) for value in own.leave_out}
    files = _below_top({plain_name(file): file for file in listed_files(path, report)}, {*class_of, *left_out})
    tally = Tally(str(path), "images")
    items: list[Item] = []
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    deeper: list[str] = []
    with open_archive(path) as open_image:
        for name, file in files.items():
            split, value, folders = _place(name, class_of)
            if value is None:
                cause = (
                    "they are not in a folder of a class; they should be in <class>/, <split>/<class>/ or "
                    f"<class>/<split>/, where split is train, val or test and class is one of {', '.join(class_of)}"
                )
                tally.add("unknown label", cause, shown(file))
            elif unwanted := next((folder for folder in name.split("/")[:-1] if folder in left_out), None):
                counts[unwanted] += 1
            elif value in class_of:
                items.append(Item(file, (class_of[value],), split, file, values=(value,)))
                deeper += [shown(file)] if folders else []
            elif (beside := files.get(name.removeprefix(f"{value}/"), file)) != file and same_content(
                open_image, file, beside
            ):
                tally.add("not taken", f"folder '{value}' has copies of what is beside it", shown(file), "warning")
            else:
                unknown[value].append(shown(file))
    tally.report(len(files), report)
    report_left_out(counts, len(files), str(path), "images", report)
    report_unknown(unknown, f"{path}: folder", data, report)
    if not items:
        raise UserError(f"{path}: has no images of the experiment's classes.")
    splits = {item.split for item in items}
    if None in splits and len(splits) > 1:
        outside = next(item.file for item in items if item.split is None)
        raise UserError(
            f"{path}: image '{outside}' is in no split, but others are; put all into train, val or test, or none."
        )
    if deeper and not own.group_pattern and "val" not in splits:
        report(
            "folders below classes",
            f"{path}: {some_of(deeper, len(items), 'images')} are in folders below their class. If these are patients, "
            "data.group_pattern of site.json should find them, or images of one patient are drawn into several splits.",
            "warning",
        )
    return items


class _Place(NamedTuple):
    """What the folders of an image say."""

    split: SplitName | None
    value: str | None
    """None if it is in no folder, or in a split's alone."""
    folders: int
    """Their number below the value's, but for a split's."""


def _place(name: str, values: Collection[str]) -> _Place:
    *folders, _ = name.split("/")
    split = split_named(folders[0]) if folders and folders[0] not in values else None
    below = folders[1:] if split else folders
    if not below:
        return _Place(split, None, 0)
    if split is None and len(below) > 1 and (split := split_named(below[1])):
        del below[1]
    return _Place(split, below[0], len(below) - 1)


def _below_top(files: Mapping[str, str], values: Collection[str]) -> Mapping[str, str]:
    """`files` by their paths below the folders that all are in, apart from folders of splits and of `values`."""
    while len(tops := {name.split("/")[0] for name in files}) == 1:
        (top,) = tops
        if top in values or split_named(top) or not any(name.count("/") > 1 for name in files):
            break
        files = {name.removeprefix(f"{top}/"): file for name, file in files.items()}
    return files
