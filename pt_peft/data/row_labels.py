"""What a row of a table says of its image: values in one column, or a column for each value."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pt_peft.data.names import clean
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data

_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)[.,]0+")
_MARKS = {"": 0, "0": 0, "1": 1, "-1": -1}

Row = Mapping[str, str]
"""Cells by column, cleaned."""


class RowLabel(NamedTuple):
    """The label of a row."""

    values: tuple[str, ...] = ()
    """The site's values."""
    uncertain: frozenset[str] = frozenset()
    """Values that the image may have or not, in `values` or not as ``data.uncertain`` has it."""
    wrong: tuple[str, str, str] | None = None
    """Why there is none: the kind of problem, the cause, and what stands in the row."""


def label_reader(
    data: Data, own: SiteData, class_of: Mapping[str, int]
) -> tuple[Callable[[Row], RowLabel], Mapping[str, str]]:
    """The function that reads the label of a row, and the columns that it needs.

    Args:
        data: the experiment's classes and task.
        own: the site's columns and values.
        class_of: as `class_of_value` gives it.

    Returns:
        The function, and for each column an explanation for `pt_peft.data.delimited.read_rows`.
    """
    if own.columns.label is not None:
        column = clean(own.columns.label)
        needed = {column: " (data.columns.label in site.json)"}
        return (lambda row: _listed(row[column], data, own, class_of)), needed
    needed = {value: f" (of the class {data.classes[index]!r})" for value, index in class_of.items()}
    needed |= {clean(value): " (data.leave_out in site.json)" for value in own.leave_out}
    return (lambda row: _marked({column: row[column] for column in needed}, data, own)), needed


def _listed(cell: str, data: Data, own: SiteData, class_of: Mapping[str, int]) -> RowLabel:
    """The label of a cell of the label column: one value, or for ``multilabel`` any number, joined by ``|``."""
    multilabel, nothing = data.task == "multilabel", clean(own.no_finding or "")
    if not cell and (nothing or not multilabel):
        says = f"; data.no_finding of site.json says that {nothing!r} stands for no class" if multilabel else ""
        return RowLabel(wrong=("no label", f"column '{own.columns.label}' is empty{says}", ""))
    values = tuple(clean(value) for value in cell.split("|")) if multilabel else (cell,)
    if multilabel and values in ((nothing,), ("",)):
        return RowLabel()
    if multilabel and nothing and nothing in values:
        cause = f"column '{own.columns.label}' has {nothing!r} of data.no_finding beside other values"
        return RowLabel(wrong=("contradicting label", cause, f" {cell!r}"))
    return RowLabel(tuple(value if value in class_of else whole(value) for value in values))


def _marked(cells: Row, data: Data, own: SiteData) -> RowLabel:
    """The label of a row with a column for each value: 1, 0, -1 (uncertain) or nothing, which CheXpert has for 0."""
    multilabel = data.task == "multilabel"
    marks: dict[str, int] = {}
    for column, cell in cells.items():
        mark = _MARKS.get(whole(cell))
        if mark is None or (mark < 0 and not multilabel):
            right = "1, 0, -1 or empty" if multilabel else "1, 0 or empty"
            return RowLabel(wrong=("unknown label", f"column '{column}' should be {right}", f" {cell!r}"))
        if mark < 0 and own.uncertain is None:
            cause = f"column '{column}' is -1, uncertain; data.uncertain of site.json says what becomes of it"
            return RowLabel(wrong=("uncertain label", cause, ""))
        marks[column] = mark
    ones = (1, -1) if own.uncertain == "ones" else (1,)
    values = tuple(column for column, mark in marks.items() if mark in ones)
    if not multilabel and len(values) != 1:
        return RowLabel(wrong=("no label", "not exactly one column of a class is 1", f" has {len(values)}"))
    return RowLabel(values, frozenset(column for column, mark in marks.items() if mark < 0))


def whole(text: str) -> str:
    """`text`, or the integer in it: a column of integers with gaps is written as ``1.0`` by pandas."""
    number = _WHOLE_NUMBER.fullmatch(text)
    return number[1] if number else text
