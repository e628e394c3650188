"""Draws docs/images/soak.svg from benchmark/results/soak.json: ``python docs/_build/soak_figure.py``."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from macros import ROOT, load

FIGURE = ROOT / "docs" / "images" / "soak.svg"

WIDTH = 900
LEFT, RIGHT = 150, 130
PANEL, GAP, TOP = 110, 46, 22
ROW = 17
"""Height of a line of faults."""
DASHES = {"server": "", "server's job": "7 3", "site": "2 3", "site's job": "1 2", "worker host": "9 3 2 3"}
"""How the curve of each kind of process is drawn."""
WORDS = {
    "worker_killed": "worker killed",
    "process_killed": "job process killed",
    "power_lost": "power lost",
    "cut": "line cut",
    "server_slow": "server's line slow",
}


def draw() -> str:
    """The figure as SVG."""
    soak = load("soak.json")
    kinds = [kind for kind in WORDS if any(one["kind"] == kind for one in soak["faults"])]
    minutes = soak["wall_s"] / 60
    faults = TOP
    sites = faults + ROW * len(kinds) + GAP
    memory, descriptors = sites + PANEL + GAP, sites + 2 * (PANEL + GAP)
    height = descriptors + PANEL + 40
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
            *_faults(soak, kinds, faults, minutes),
            *_sites(soak, sites, minutes),
            *_curves(soak["curves"], "mb", "private memory, MB", memory, minutes),
            *_curves(soak["curves"], "descriptors", "open descriptors", descriptors, minutes),
            *_time(minutes, descriptors + PANEL),
            "</svg>\n",
        )
    )


def _faults(soak: dict[str, Any], kinds: Sequence[str], top: int, minutes: float) -> Iterator[str]:
    """A line for each kind of fault, a bar for each from its begin until its site is back."""
    yield f'  <text class="title" x="0" y="{top - 8}">faults</text>'
    for row, kind in enumerate(kinds):
        y = top + ROW * row + 8
        yield f'  <text class="muted" x="0" y="{y + 4}">{WORDS[kind]}</text>'
        for one in (one for one in soak["faults"] if one["kind"] == kind):
            begin = _x(one["begin_s"] / 60, minutes)
            end = max(begin + 2, _x((one["back_s"] or soak["wall_s"]) / 60, minutes))
            yield f'  <path class="accent" stroke-width="6" d="M{begin} {y}H{end}"/>'


def _sites(soak: dict[str, Any], top: int, minutes: float) -> Iterator[str]:
    """How many sites took part in each round."""
    yield from _panel("sites in a round", top, [0, soak["quorum"], soak["sites"]], soak["sites"])
    y = _y(soak["quorum"], soak["sites"], top)
    yield f'  <text class="muted" x="{WIDTH - RIGHT + 8}" y="{y + 4}">quorum</text>'
    points = [
        (_x(ended / 60, minutes), _y(count, soak["sites"], top))
        for ended, count in zip(soak["ended_s"], soak["took_part"], strict=True)
    ]
    yield f'  <path class="accent" d="{_path(points)}"/>'


def _curves(curves: dict[str, Any], name: str, title: str, top: int, minutes: float) -> Iterator[str]:
    """The mean over the processes of each kind."""
    most = max(value for one in curves.values() for value in one[name])
    step = _step(most)
    yield from _panel(title, top, range(0, int(most) + step, step), most)
    labels: list[tuple[float, str]] = []
    for role, one in curves.items():
        if not one["s"]:
            continue
        points = [
            (_x(when / 60, minutes), _y(value, most, top)) for when, value in zip(one["s"], one[name], strict=True)
        ]
        yield f'  <path class="line" stroke-dasharray="{DASHES[role]}" d="{_path(points)}"/>'
        labels.append((points[-1][1], role))
    below = top - 20.0
    for y, role in sorted(labels):
        below = max(y + 4, below + 13)
        yield f'  <text class="muted" x="{WIDTH - RIGHT + 8}" y="{below:.1f}">{role}</text>'


def _panel(title: str, top: int, values: Iterable[float], most: float) -> Iterator[str]:
    yield f'  <text class="title" x="0" y="{top - 8}">{title}</text>'
    for value in values:
        if value <= most:
            y = _y(value, most, top)
            yield f'  <path class="box" stroke-opacity="0.2" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
            yield f'  <text class="muted" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>'


def _time(minutes: float, bottom: int) -> Iterator[str]:
    step = _step(minutes)
    for value in range(0, int(minutes) + 1, step):
        yield f'  <text class="muted" x="{_x(value, minutes)}" y="{bottom + 18}" text-anchor="middle">{value}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'  <text class="muted" x="{middle}" y="{bottom + 36}" text-anchor="middle">minutes</text>'


def _step(most: float) -> int:
    """A round distance of some lines up to `most`."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if most / step <= 6)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _x(minute: float, minutes: float) -> float:
    return round(LEFT + minute / minutes * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, most: float, top: int) -> float:
    return round(top + (1 - value / most) * PANEL, 1)


def main() -> None:
    """Writes the figure."""
    Path(FIGURE).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
