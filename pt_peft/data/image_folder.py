"""A folder or zip archive with a sub-folder for each class, within sub-folders for the splits or without them."""

from collections import defaultdict
from pathlib import Path

from pt_peft.data.archive import SUFFIXES, listed_files
from pt_peft.data.items import Item, SplitName
from pt_peft.data.label_values import class_of_value, report_unknown
from pt_peft.data.problems import Report, stop
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data

_SPLITS: dict[str, SplitName] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_image_folder(path: Path, data: Data, own: SiteData, report: Report = stop) -> list[Item]:
    """The images in ``<value>/…`` or ``<split>/<value>/…``; each image is a group of its own.

    Args:
        path: the folder or zip archive.
        data: the experiment's classes.
        own: the values that mean them.
        report: takes images outside of such folders, and folders whose name means no class.

    Raises:
        UserError: if `path` is neither a folder nor a zip archive, has no images, or has images both in splits and
            outside, or a value means two classes; and what `report` raises.
    """
    class_of = class_of_value(data, own)
    items: list[Item] = []
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    for name in listed_files(path):
        *folders, _ = name.split("/")
        split = _SPLITS.get(folders[0].lower()) if folders else None
        if len(folders) <= bool(split):
            report(
                "unknown label",
                f"{path}: image '{name}' is not in a folder of a class; it should be in <class>/ or <split>/<class>/, "
                f"where split is train, val or test and class is one of {', '.join(class_of)}.",
            )
            continue
        value = folders[1 if split else 0]
        if value in class_of:
            items.append(Item(name, (class_of[value],), split, name, values=(value,)))
        else:
            unknown[value].append(f"'{name}'")
    report_unknown(unknown, f"{path}: folder", data, report)
    if not items:
        raise UserError(f"{path}: has no images ({', '.join(SUFFIXES)}).")
    if len({item.split is None for item in items}) > 1:
        outside = next(item.file for item in items if item.split is None)
        raise UserError(
            f"{path}: image '{outside}' is in no split, but others are; put all below train, val or test, or none."
        )
    return items
