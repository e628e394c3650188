"""The parts of a report, before they become Markdown or HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmark.measurements.intervals import Estimate

NONE = "\N{EN DASH}"
"""Shown where there is no value."""


class Value(NamedTuple):
    """A table's entry: the text shown, and what it is sorted by (None sorts last)."""

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
        """Whether each column holds numbers."""
        return [all(not isinstance(row[column].order, str) for row in self.rows) for column in range(len(self.header))]


@dataclass(frozen=True)
class Figure:
    """An SVG file's name, its content, and what it shows in words."""

    file: str
    svg: str
    caption: str


Block = Table | Figure | str
"""A part of a section; text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """Blocks under a heading. `panel` is its name in the page's filter; a section of None is always shown."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    panel: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything, in reading order."""

    title: str
    warnings: list[str]
    sections: list[Section]

    @property
    def figures(self) -> list[Figure]:
        """Those of all sections."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def text(value: object) -> Value:
    """An entry that is sorted as it is written."""
    return Value(str(value), str(value)) if value not in (None, "") else Value(NONE, None)


def count(value: float | None) -> Value:
    """A number with thousands separated."""
    return Value(NONE, None) if value is None else Value(f"{value:,.0f}", value)


def runs(seeds: Iterable[int], units: str) -> Value:
    """How many seeds there are, or which folds."""
    there = sorted(seeds)
    return Value(", ".join(map(str, there)) if units == "folds" else f"{len(there)}", len(there))


def megabytes(value: float | None) -> Value:
    """Bytes in MB."""
    return (
        Value(NONE, None)
        if value is None
        else Value(f"{value / 1e6:,.3g}" if value < 1e9 else f"{value / 1e6:,.0f}", value)
    )


def percent(estimate: Estimate | None) -> Value:
    """A fraction in percent, ± half its symmetric interval."""
    if estimate is None:
        return Value(NONE, None)
    shown = f"{100 * estimate.value:.1f}"
    return Value(
        shown if estimate.high is None else f"{shown} ± {100 * (estimate.high - estimate.value):.1f}", estimate.value
    )


def points(estimate: Estimate | None) -> Value:
    """A difference or slope with its interval."""
    return Value(NONE, None) if estimate is None else Value(in_points(estimate), estimate.value)


def interval(estimate: Estimate | None) -> Value:
    """The interval of a difference or slope, sorted by its lower end."""
    return Value(NONE, None) if estimate is None else Value(in_brackets(estimate) or NONE, estimate.low)


def probability(p: float | None) -> Value:
    """A p value."""
    if p is None:
        return Value(NONE, None)
    return Value(f"{p:.3f}" if p >= 0.001 else "< 0.001", p)


def in_points(estimate: Estimate) -> str:
    """A signed value with its interval in brackets."""
    return f"{estimate.value:+.1f} {in_brackets(estimate)}".rstrip()


def in_brackets(estimate: Estimate) -> str:
    """The interval in brackets; empty where there is none."""
    return "" if estimate.low is None else f"[{estimate.low:+.1f}, {estimate.high:+.1f}]"
