"""The CSV table that lists a site's images."""

import csv
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from pt_peft.data.items import SPLITS, Item
from pt_peft.errors import UserError
from pt_peft.experiment import Columns

_LEAVES_FOLDER = re.compile(r"^$|\x00|^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
"""An empty or absolute path, or one with ``..``, by the rules of either family of systems."""


def read_table(path: Path, columns: Columns, classes: Sequence[str]) -> list[Item]:
    """Reads and checks every row. Line numbers in errors count the header as line 1.

    Raises:
        UserError: if the table cannot be read, a column is missing, a label or split is unknown, a path leaves the
            images folder, an image is listed twice, or a group is in two splits.
    """
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_header(path, columns, reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV table in UTF-8 ({error}).") from None
    if not rows:
        raise UserError(f"{path}: has no rows; it should list one image in each row below the header.")

    index = {label: i for i, label in enumerate(classes)}
    items: list[Item] = []
    line_of_file: dict[str, int] = {}
    first_of_group: dict[str, tuple[str, int]] = {}
    for line, row in rows:
        where = f"{path}: line {line}: "
        if None in row or None in row.values():
            raise UserError(f"{where}the row does not have as many fields as the header.")
        file = row[columns.file]
        if _LEAVES_FOLDER.search(file):
            raise UserError(f"{where}column '{columns.file}' is {file!r}; it should be a path inside the images folder.")
        file = posixpath.normpath(file)  # './a.png' is 'a.png'
        if file in line_of_file:
            raise UserError(f"{where}image {file!r} is also in line {line_of_file[file]}; list each image once.")
        line_of_file[file] = line

        label = row[columns.label]
        if label not in index:
            raise UserError(
                f"{where}column '{columns.label}' is {label!r}, which is not in the experiment's data.classes"
                f" ({', '.join(classes)})."
            )

        split = row[columns.split] if columns.split else None
        if columns.split and split not in SPLITS:
            raise UserError(f"{where}column '{columns.split}' is {split!r}; it should be one of {', '.join(SPLITS)}.")

        # An image without a group is a group of its own.
        group = (columns.group and row[columns.group]) or file
        other, other_line = first_of_group.setdefault(group, (split, line))
        if other != split:
            raise UserError(
                f"{where}group {group!r} (column '{columns.group}') is in split '{split}' here and in '{other}' in line"
                f" {other_line}; put a group's images in one split, or set data.columns.group to null."
            )
        items.append(Item(file, index[label], split, group, row[columns.site] if columns.site else None))
    return items


def _check_header(path: Path, columns: Columns, there: Sequence[str]) -> None:
    if twice := sorted({column for column in there if there.count(column) > 1}):
        raise UserError(f"{path}: has two columns '{twice[0]}'.")
    for field, column in columns:
        if column is not None and column not in there:
            raise UserError(
                f"{path}: has no column '{column}' (the experiment's data.columns.{field}); its columns are"
                f" {', '.join(there) or 'none'}."
            )
