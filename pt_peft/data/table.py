"""The table that lists a site's images."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pt_peft.data.delimited import read_rows
from pt_peft.data.file_names import Lookup, look_up
from pt_peft.data.items import Item, SplitName
from pt_peft.data.label_values import class_of_value, report_left_out, report_unknown
from pt_peft.data.listing import listed_files, shown
from pt_peft.data.names import clean, says_unknown
from pt_peft.data.problems import Report, Tally, not_taken, some_of, stop
from pt_peft.data.splits import split_named
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site

MOST_UNKNOWN = 0.05
"""Largest share of rows whose group is not known; in a table of few rows one such row is allowed."""
_LEAVES_FOLDER = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00")
"""An absolute path, or one with ``..``, by the rules of POSIX or of Windows."""
_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)[.,]0+")
_FINDING = {"": 0, "0": 0, "1": 1, "-1": -1}

Row = Mapping[str, str]


class _Label(NamedTuple):
    """What a row says of its image."""

    values: tuple[str, ...] = ()
    """The site's values."""
    uncertain: frozenset[str] = frozenset()
    """Values that the image may have or not."""
    wrong: tuple[str, str, str] | None = None
    """Why the row cannot be used: the kind of problem, the cause, and what stands in the row."""


def read_table(site: Site, data: Data, report: Report = stop) -> list[Item]:
    """Reads and checks every row. Line numbers in messages count all lines of the file.

    Args:
        site: where the table and the images lie, what the columns are and what their values mean.
        data: the experiment's classes.
        report: takes values that mean no class and, for each cause, the rows that it leaves out: without a file or with
            an ambiguous one, with the image of another row, without a label, with an unknown split, or of a group that
            is in two splits; groups that are not known, images without a row, and what `listed_files` reports.

    Raises:
        UserError: if the table or the images cannot be listed, a column is missing, or a value means two classes; and
            what `report` raises.
    """
    own, path, images = site.data, site.existing("data.table"), site.existing("data.images")
    columns, class_of = own.columns, class_of_value(data, own)
    label_of, label_columns = _labels(data, own, class_of)
    named = {column: f" (data.columns.{field} in site.json)" for field, column in columns if column is not None}
    rows = read_rows(path, {**named, **label_columns}, report)
    rows_of_files = _files(path, images, rows, clean(columns.file), site.allowed_unreadable(len(rows)), report)

    tally = Tally(str(path), "rows")
    items: list[Item] = []
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    of_group: dict[str, tuple[SplitName | None, int]] = {}
    without_group: list[str] = []
    for line, row, file in rows_of_files:
        label = label_of(row)
        if label.wrong:
            kind, cause, seen = label.wrong
            tally.add(kind, cause, f"line {line}{seen}")
            continue
        values = label.values
        if set(values) & (unwanted := {clean(value) for value in own.leave_out}):
            left_out.update(set(values) & unwanted)
            if data.task != "multilabel":
                continue
            values = tuple(value for value in values if value not in unwanted)
        values = tuple(value if value in class_of else _whole(value) for value in values)
        if strange := [value for value in values if value not in class_of]:
            unknown[strange[0]].append(f"in line {line}")
            continue
        labels = tuple(sorted({class_of[value] for value in values}))
        not_known = tuple(sorted({class_of[value] for value in label.uncertain} - set(labels)))

        split: SplitName | None = None
        if columns.split:
            split = split_named(row[clean(columns.split)])
            if split is None:
                cause = f"column '{columns.split}' should be train, val or test"
                tally.add("unknown split", cause, f"line {line} {row[clean(columns.split)]!r}")
                continue

        group = row[clean(columns.group)] if columns.group else file
        if says_unknown(group):
            without_group.append(f"line {line} {group!r}")
            group = file
        other, other_line = of_group.setdefault(group, (split, line))
        if other != split:
            tally.add(
                "group in two splits",
                f"a row above has the group of column '{columns.group}' in another split; put each group in one, or "
                "set data.columns.group to null in site.json",
                f"line {line} {group!r} in '{split}', line {other_line} in '{other}'",
            )
            continue
        items.append(
            Item(file, labels, split, group, row[clean(columns.site)] if columns.site else None, values, not_known)
        )
    tally.report(len(rows), report)
    what = f"column '{columns.label}':" if columns.label else "column"
    report_unknown(unknown, f"{path}: {what}", data, report)
    report_left_out(left_out, len(rows), str(path), "rows", report)
    if columns.group:
        _check_groups(path, columns.group, items, without_group, len(rows), report)
    return items


def _files(
    path: Path, images: Path, rows: Sequence[tuple[int, Row]], column: str, allowed: int, report: Report
) -> list[tuple[int, Row, str]]:
    """The rows with an image of their own: line, row and the image's name in `images`.

    Up to `allowed` rows without one keep the table's name: reading the images then finds them unreadable.
    """
    tally = Tally(str(path), "rows")
    for line, row in rows:
        if not row[column]:
            tally.add("no such image", f"column '{column}' is empty", f"line {line}")
    named = [(line, row) for line, row in rows if row[column]]
    listed = listed_files(images, report, [path])
    lookup = look_up([row[column] for _, row in named], listed) if named else Lookup([])
    missing = [row[column] for (_, row), files in zip(named, lookup.files, strict=True) if not files]
    refused = len(missing) > allowed or any(map(_LEAVES_FOLDER.search, missing))
    found: list[tuple[int, Row, str]] = []
    line_of: dict[str, int] = {}
    for (line, row), files in zip(named, lookup.files, strict=True):
        where = f"line {line} {row[column]!r}"
        file = files[0] if files else row[column]
        if len(files) > 1:
            cause = f"several files in {images} end so; column '{column}' should have the path inside it"
            tally.add("ambiguous file", cause, f"{where}: '{files[0]}', '{files[1]}'")
        elif not files and refused:
            tally.add("no such image", f"column '{column}' should be the path of a file inside {images}", where)
        elif (first := line_of.setdefault(file, line)) != line:
            tally.add(
                "listed twice", "a row above has the same image; list each image once", f"{where} as line {first}"
            )
        else:
            found.append((line, row, file))
    tally.report(len(rows), report)
    if lookup.how:
        report("names of files", f"{path}: the names in column '{column}' are looked up {lookup.how}.", "warning")
    meant = {file for files in lookup.files for file in files}
    if others := [shown(file) for file in listed if file not in meant]:
        without = not_taken(others, len(listed), "images", f"no row of {path} has them")
        report("image without a row", f"{images}: {without}.", "warning")
    return found


def _labels(
    data: Data, own: SiteData, class_of: Mapping[str, int]
) -> tuple[Callable[[Row], _Label], Mapping[str, str]]:
    """Reads the label of a row, and the columns besides `own.columns` that this needs, see `read_rows`."""
    if own.columns.label is not None:
        column = clean(own.columns.label)
        return (lambda row: _listed(row[column], data, own)), {}
    needed = {value: f" (of the class {data.classes[index]!r})" for value, index in class_of.items()}
    needed |= {clean(value): " (data.leave_out in site.json)" for value in own.leave_out}
    return (lambda row: _marked({column: row[column] for column in needed}, data, own)), needed


def _listed(cell: str, data: Data, own: SiteData) -> _Label:
    """The label of a cell of the label column: one value, or for ``multilabel`` any number, joined by ``|``."""
    multilabel, nothing = data.task == "multilabel", clean(own.no_finding or "")
    if not cell and (nothing or not multilabel):
        says = f"; data.no_finding of site.json says that {nothing!r} stands for no class" if multilabel else ""
        return _Label(wrong=("no label", f"column '{own.columns.label}' is empty{says}", ""))
    if not multilabel:
        return _Label((cell,))
    values = tuple(clean(value) for value in cell.split("|")) if cell else ()
    if values == (nothing,):
        return _Label()
    if nothing and nothing in values:
        cause = f"column '{own.columns.label}' has {nothing!r} of data.no_finding beside other values"
        return _Label(wrong=("contradicting label", cause, f" {cell!r}"))
    return _Label(values)


def _marked(cells: Mapping[str, str], data: Data, own: SiteData) -> _Label:
    """The label of a row with a column for each value: 1, 0, -1 (uncertain) or nothing, which CheXpert has for 0."""
    marks: dict[str, int] = {}
    right = "1, 0 or empty" if data.task != "multilabel" else "1, 0, -1 or empty"
    for column, cell in cells.items():
        mark = _FINDING.get(_whole(cell))
        if mark is None or (mark < 0 and data.task != "multilabel"):
            return _Label(wrong=("unknown label", f"column '{column}' should be {right}", f" {cell!r}"))
        if mark < 0 and own.uncertain is None:
            cause = f"column '{column}' is -1, uncertain; data.uncertain of site.json says what becomes of it"
            return _Label(wrong=("uncertain label", cause, ""))
        marks[column] = mark
    ones = (1, -1) if own.uncertain == "ones" else (1,)
    values = tuple(column for column, mark in marks.items() if mark in ones)
    if data.task != "multilabel" and len(values) != 1:
        return _Label(wrong=("no label", "not exactly one column of a class is 1", f" has {len(values)}"))
    uncertain = {column for column, mark in marks.items() if mark < 0} if own.uncertain == "ignore" else ()
    return _Label(values, frozenset(uncertain))


def _whole(text: str) -> str:
    """`text`, or the integer in it: a column of integers with gaps is written as ``1.0`` by pandas."""
    number = _WHOLE_NUMBER.fullmatch(text)
    return number[1] if number else text


def _check_groups(
    path: Path, column: str, items: Sequence[Item], without: Sequence[str], of: int, report: Report
) -> None:
    """Refuses a column in which many rows have no group; warns of few, and of one group that is most of the images."""
    if without:
        missing = f"{path}: in {some_of(without, of, 'rows')} column '{column}' does not say the group"
        if len(without) > max(1, MOST_UNKNOWN * of):
            report(
                "no group",
                f"{missing}, so that images of one patient could be in training and test; fill it in, with a name of "
                "its own for an image that is alone, or set data.columns.group to null in site.json.",
            )
        else:
            report("no group", f"{missing}; each of these images is a group of its own.", "warning")
    sizes = Counter(item.group for item in items)
    for group, size in sizes.most_common(1):
        if 2 * size > len(items) and len(items) >= 20:
            report(
                "large group",
                f"{path}: {size} of {len(items)} rows have the group {group!r} in column '{column}' and stay together; "
                "it may stand for many patients.",
                "warning",
            )
