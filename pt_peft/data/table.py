"""The CSV table that lists a site's images."""

import csv
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pt_peft.data.items import SPLITS, Item, SplitName
from pt_peft.data.label_values import class_of_value, report_unknown
from pt_peft.data.problems import Report, stop
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data

_LEAVES_FOLDER = re.compile(r"^$|\x00|^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
"""An empty or absolute path, or one with ``..``, by the rules of POSIX or of Windows."""


def read_table(path: Path, data: Data, own: SiteData, report: Report = stop) -> list[Item]:
    """Reads and checks every row. Line numbers in errors count the header as line 1.

    Args:
        path: the CSV table.
        data: the experiment's classes.
        own: the site's columns and the values in them.
        report: takes values that mean no class, and rows with an unknown split, a path that leaves the images folder,
            an image that is listed twice, or a group that is in two splits.

    Raises:
        UserError: if the table cannot be read, a column is missing, or a value means two classes; and what `report`
            raises.
    """
    columns, class_of = own.columns, class_of_value(data, own)
    rows = read_rows(
        path, {column: f" (data.columns.{field} in site.json)" for field, column in columns if column is not None}
    )
    items: list[Item] = []
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    line_of_file: dict[str, int] = {}
    first_of_group: dict[str, tuple[SplitName | None, int]] = {}
    for line, row in rows:
        where = f"{path}: line {line}: "
        file = row[columns.file]
        if _LEAVES_FOLDER.search(file):
            report("path", f"{where}column '{columns.file}' is {file!r}; it should be a path inside the images folder.")
            continue
        file = posixpath.normpath(file)  # './a.png' is 'a.png'
        if file in line_of_file:
            report("listed twice", f"{where}image {file!r} is also in line {line_of_file[file]}; list each image once.")
            continue
        line_of_file[file] = line

        values = _values(row[columns.label], data, own)
        if strange := [value for value in values if value not in class_of]:
            unknown[strange[0]].append(f"in line {line}")
            continue
        labels = tuple(sorted({class_of[value] for value in values}))

        split: SplitName | None = None
        if columns.split:
            named = row[columns.split]
            split = next((one for one in SPLITS if one == named), None)
            if split is None:
                report(
                    "unknown split",
                    f"{where}column '{columns.split}' is {named!r}; it should be one of {', '.join(SPLITS)}.",
                )
                continue

        # An image without a group is a group of its own.
        group = (columns.group and row[columns.group]) or file
        other, other_line = first_of_group.setdefault(group, (split, line))
        if other != split:
            report(
                "group in two splits",
                f"{where}group {group!r} (column '{columns.group}') is in split '{split}' here and in '{other}' in "
                f"line {other_line}; put them in one split, or set data.columns.group to null in site.json.",
            )
            continue
        items.append(Item(file, labels, split, group, row[columns.site] if columns.site else None, values))
    report_unknown(unknown, f"{path}: column '{columns.label}':", data, report)
    return items


def _values(cell: str, data: Data, own: SiteData) -> tuple[str, ...]:
    """The values in a cell of the label column: one, or for ``multilabel`` any number, joined by ``|``."""
    if data.task != "multilabel":
        return (cell,)
    return () if cell in ("", own.no_finding) else tuple(cell.split("|"))


def read_rows(path: Path, columns: Mapping[str, str]) -> list[tuple[int, dict[str, str]]]:
    """The line number of each row below the header, and the row's fields by column.

    Args:
        path: the CSV table, or a tab-separated one if its name ends in ``.tab`` or ``.tsv``.
        columns: names that the header must have, each with an explanation for the error.

    Raises:
        UserError: if the table cannot be read, has no rows or incomplete ones, or lacks a column.
    """
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
        with open(path, newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if path.suffix in (".tab", ".tsv") else ","
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            _check_header(path, columns, reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV table in UTF-8 ({error}).") from None
    if not rows:
        raise UserError(f"{path}: has no rows; it should list one image in each row below the header.")
    for line, row in rows:
        if None in row or None in row.values():
            raise UserError(f"{path}: line {line}: the row does not have as many fields as the header.")
    return rows


def _check_header(path: Path, columns: Mapping[str, str], there: Sequence[str]) -> None:
    if twice := sorted({column for column in there if there.count(column) > 1}):
        raise UserError(f"{path}: has two columns '{twice[0]}'.")
    for column, why in columns.items():
        if column not in there:
            raise UserError(f"{path}: has no column '{column}'{why}; its columns are {', '.join(there) or 'none'}.")
