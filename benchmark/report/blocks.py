"""What a report is made of, whatever it is written as."""

from dataclasses import dataclass, field
from typing import NamedTuple

from benchmark.report.statistics import Estimate

NONE = "–"


class Value(NamedTuple):
    """A table's entry: what is shown, and what it is sorted by (None sorts last)."""

    text: str
    order: float | str | None


@dataclass(frozen=True)
class Table:
    """Rows under a header."""

    caption: str
    header: list[str]
    rows: list[list[Value]]

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers."""
        return [all(not isinstance(row[column].order, str) for row in self.rows) for column in range(len(self.header))]


@dataclass(frozen=True)
class Figure:
    """An SVG file's name, its content, and what it shows in words."""

    file: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """Blocks under a heading. `panel` is what the page's filter calls it; a section of None is always shown."""

    title: str
    blocks: list[Table | Figure | str] = field(default_factory=list)
    panel: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything, in reading order."""

    title: str
    warnings: list[str]
    sections: list[Section]

    @property
    def figures(self) -> list[Figure]:
        """Of all sections."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def text(value: object) -> Value:
    """Sorted as it is written."""
    return Value(str(value), str(value)) if value not in (None, "") else Value(NONE, None)


def count(value: float | None) -> Value:
    """With thousands separated."""
    return Value(NONE, None) if value is None else Value(f"{value:,.0f}", value)


def megabytes(value: float | None) -> Value:
    """Of a number of bytes."""
    return (
        Value(NONE, None)
        if value is None
        else Value(f"{value / 1e6:,.3g}" if value < 1e9 else f"{value / 1e6:,.0f}", value)
    )


def percent(estimate: Estimate | None) -> Value:
    """Of a fraction, with half its symmetric interval."""
    if estimate is None:
        return Value(NONE, None)
    shown = f"{100 * estimate.value:.1f}"
    return Value(
        shown if estimate.high is None else f"{shown} ± {100 * (estimate.high - estimate.value):.1f}", estimate.value
    )


def points(estimate: Estimate | None) -> Value:
    """A difference or slope with its interval."""
    return Value(NONE, None) if estimate is None else Value(in_points(estimate), estimate.value)


def in_points(estimate: Estimate) -> str:
    """A signed value with its interval in brackets."""
    interval = "" if estimate.low is None else f" [{estimate.low:+.1f}, {estimate.high:+.1f}]"
    return f"{estimate.value:+.1f}{interval}"
