"""A folder or zip archive with a sub-folder for each class, within sub-folders for the splits or without them."""

from collections.abc import Sequence
from pathlib import Path

from pt_peft.data.archive import SUFFIXES, listed_files
from pt_peft.data.items import Item, SplitName
from pt_peft.data.problems import Report, stop
from pt_peft.errors import UserError

_SPLITS: dict[str, SplitName] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_image_folder(path: Path, classes: Sequence[str], report: Report = stop) -> list[Item]:
    """The images in ``<class>/…`` or ``<split>/<class>/…``; each image is a group of its own.

    Args:
        path: the folder or zip archive.
        classes: the experiment's class names.
        report: takes images outside of the folders of the classes.

    Raises:
        UserError: if `path` is neither a folder nor a zip archive, has no images, or has images both in splits and
            outside; and what `report` raises.
    """
    index = {label: position for position, label in enumerate(classes)}
    items: list[Item] = []
    for name in listed_files(path):
        *folders, _ = name.split("/")
        split = _SPLITS.get(folders[0].lower()) if folders else None
        label = folders[1 if split else 0] if len(folders) > bool(split) else None
        if label is None or label not in index:
            report(
                "unknown label",
                f"{path}: image '{name}' is not in a folder of a class; it should be in <class>/ or <split>/<class>/, "
                "where split is train, val or test and class is one of the experiment's data.classes "
                f"({', '.join(classes)}).",
            )
            continue
        items.append(Item(name, (index[label],), split, name))
    if not items:
        raise UserError(f"{path}: has no images ({', '.join(SUFFIXES)}).")
    if len({item.split is None for item in items}) > 1:
        outside = next(item.file for item in items if item.split is None)
        raise UserError(
            f"{path}: image '{outside}' is in no split, but others are; put all below train, val or test, or none."
        )
    return items
