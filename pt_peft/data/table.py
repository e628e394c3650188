"""The table that lists a site's images."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from pt_peft.data.delimited import read_rows
from pt_peft.data.file_names import Lookup, look_up
from pt_peft.data.items import Item, SplitName
from pt_peft.data.label_values import class_of_value, report_left_out, report_unknown
from pt_peft.data.listing import listed_files, shown
from pt_peft.data.names import clean, says_unknown
from pt_peft.data.problems import Report, Tally, not_taken, some_of, stop
from pt_peft.data.row_labels import Row, label_reader, whole
from pt_peft.data.splits import split_named
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site

MOST_UNKNOWN = 0.05
"""Largest share of rows whose group is not known; in a table of few rows one such row is allowed."""
_LEAVES_FOLDER = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00")
"""An absolute path, or one with ``..``, by the rules of POSIX or of Windows."""


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
    path, images, columns = site.existing("data.table"), site.existing("data.images"), site.data.columns
    items = _Items(path, site, data)
    named = {column: f" (data.columns.{field} in site.json)" for field, column in columns if column is not None}
    rows = read_rows(path, {**named, **items.label_columns}, report)
    allowed = site.allowed_unreadable(len(rows))
    for line, row, file in _files(path, images, rows, clean(columns.file), allowed, report):
        items.add(line, row, file)
    items.report(len(rows), report)
    return items.items


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
    example = f"such as {shown(listed[0])}" if listed else "which has no images"
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
            cause = f"column '{column}' should be the path of a file inside {images}, {example}"
            tally.add("no such image", cause, where)
        elif (first := line_of.setdefault(file, line)) != line:
            cause = "a row above has the same image; list each image once"
            tally.add("listed twice", cause, f"{where} as line {first}")
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


class _Items:
    """The items that rows give; counts the rows that give none."""

    def __init__(self, path: Path, site: Site, data: Data):
        """Takes what the table and its values mean. Raises UserError if a value means two classes."""
        self._path, self._data, columns = path, data, site.data.columns
        self._class_of = class_of_value(data, site.data)
        self._label_of, self.label_columns = label_reader(data, site.data, self._class_of)
        self._unwanted = {clean(value) for value in site.data.leave_out}
        self._if_uncertain = site.data.uncertain
        self._label = "column" if columns.label is None else f"column '{columns.label}':"
        self._split, self._group, self._site = (
            name and clean(name) for name in (columns.split, columns.group, columns.site)
        )
        self.items: list[Item] = []
        self._tally = Tally(str(path), "rows")
        self._unknown: defaultdict[str, list[str]] = defaultdict(list)
        self._left_out: Counter[str] = Counter()
        self._uncertain: Counter[str] = Counter()
        self._first_of_group: dict[str, tuple[SplitName | None, int]] = {}
        self._without_group: list[str] = []

    def add(self, line: int, row: Row, file: str) -> None:
        """Adds the item of a row, or counts why it has none."""
        label = self._label_of(row)
        if label.wrong:
            kind, cause, seen = label.wrong
            self._tally.add(kind, cause, f"line {line}{seen}")
            return
        unwanted = self._unwanted.intersection(label.values)
        self._left_out.update(unwanted)
        if unwanted and self._data.task != "multilabel":
            return
        values = tuple(value for value in label.values if value not in unwanted)
        if strange := [value for value in values if value not in self._class_of]:
            self._unknown[strange[0]].append(f"in line {line}")
            return
        labels = {self._class_of[value] for value in values}
        uncertain = {value for value in label.uncertain if value in self._class_of}
        masked = {self._class_of[value] for value in uncertain} - labels if self._if_uncertain == "ignore" else ()
        split = split_named(row[self._split]) if self._split else None
        if self._split and split is None:
            cause = f"column '{self._split}' should be train, val or test"
            self._tally.add("unknown split", cause, f"line {line} {row[self._split]!r}")
            return
        group = self._group_of(line, row) or file
        if self._is_in_two_splits(group, split, line):
            return
        place = row[self._site] if self._site else None
        self.items.append(Item(file, tuple(sorted(labels)), split, group, place, values, tuple(sorted(masked))))
        self._uncertain.update(uncertain)

    def _group_of(self, line: int, row: Row) -> str | None:
        """The group that the row says; None if it says none."""
        if not self._group:
            return None
        group = whole(row[self._group])
        if says_unknown(group):
            self._without_group.append(f"line {line} {group!r}")
            return None
        return group

    def _is_in_two_splits(self, group: str, split: SplitName | None, line: int) -> bool:
        other, other_line = self._first_of_group.setdefault(group, (split, line))
        if other != split:
            self._tally.add(
                "group in two splits",
                f"a row above has the group of column '{self._group}' in another split; put each group in one, or set "
                "data.columns.group to null in site.json",
                f"line {line} {group!r} in '{split}', line {other_line} in '{other}'",
            )
        return other != split

    def report(self, of: int, report: Report) -> None:
        """Reports what was counted; `of` is the number of all rows."""
        self._tally.report(of, report)
        report_unknown(self._unknown, f"{self._path}: {self._label}", self._data, report)
        report_left_out(self._left_out, of, str(self._path), "rows", report)
        if self._uncertain:
            counts = ", ".join(f"{value!r} in {count}" for value, count in sorted(self._uncertain.items()))
            message = (
                f"{self._path}: data.uncertain of site.json is {self._if_uncertain!r} for -1 of {counts} of {of} rows."
            )
            report("uncertain label", message, "warning")
        if self._group:
            _check_groups(self._path, self._group, self.items, self._without_group, of, report)


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
