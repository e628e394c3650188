"""The report's figures."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal
from zlib import crc32

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from benchmark.measurements.intervals import over_seeds
from benchmark.report.baselines import ALONE, POOLED, comparison_partners
from benchmark.report.blocks import NONE, Figure, count, in_brackets, in_points, percent
from benchmark.report.comparisons import Difference
from benchmark.report.curves import mean_curve
from benchmark.report.panels import Panel
from benchmark.report.results import Results
from benchmark.report.slopes import Fit
from benchmark.report.statistics import METRICS
from benchmark.report.svg import STYLE, Tooltips, to_svg
from benchmark.sweep.records import BaselineRecord, ChoiceRecord, TriedSettings

BACKBONE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""
MARKERS = "osD^v<>PXph*d8H"
NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "macro_f1": "macro F1",
    "ece": "ECE",
}
ABOVE = 74
"""Points above an axis that the methods' names take."""
Rgba = tuple[float, float, float, float]
LEVELS: dict[str, Literal["dashdot", "dotted"]] = {POOLED: "dashdot", ALONE: "dotted"}
"""Lines of what models without a federation reach."""
CHOSEN: dict[str, Any] = {"markersize": 9, "markeredgecolor": "black", "markeredgewidth": 1.5}
BARS = "Bars: 95 % over {}, within 0 and 100 %."
PARAMETERS = "exchanged parameters per site and round"


class Look:
    """Colours of backbones, and markers and colours of methods: the same in every figure."""

    def __init__(self, results: Results) -> None:
        axes = [one.axes for one in (*results.cells, *results.failed_cells, *results.choices)]
        backbones = sorted({one.backbone for one in axes})
        self.methods = sorted({one.method for one in axes})
        self.backbone = {name: BACKBONE_COLOURS[i % len(BACKBONE_COLOURS)] for i, name in enumerate(backbones)}
        self.method = dict(zip(self.methods, _palette(len(self.methods)), strict=True))
        self.marker = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(self.methods)}


def _palette(count: int) -> list[Rgba]:
    colours = colormaps["tab10" if count <= 10 else "tab20"]
    return [colours(index % colours.N) for index in range(count)]


def metric_name(metric: str) -> str:
    """The metric's name in words."""
    return NAMES.get(metric, metric.replace("_", " "))


def overview(
    panels: list[Panel],
    fits: list[Fit],
    baselines: list[BaselineRecord],
    look: Look,
    metric: Literal["balanced_accuracy"] = "balanced_accuracy",
) -> Figure:
    """All panels' methods on one page: a row for each data set."""
    rows: dict[tuple[str, ...], list[Panel]] = defaultdict(list)
    for panel in panels:
        rows[panel.key[:2]].append(panel)
    columns = max(len(row) for row in rows.values())
    backbones = sorted({name for panel in panels for name in panel.backbones})
    tooltips = Tooltips()
    with rc_context(STYLE):
        size = (max(7.0, 4.0 * columns), (4.1 + 0.32 * len(backbones)) * len(rows) + 0.5)
        canvas = Canvas(figsize=size, layout="constrained")
        grid = canvas.subplots(len(rows), columns, squeeze=False, sharey="row")
        for axes in grid.flat:
            axes.set_visible(False)
        places = [
            (grid[line, place], panel) for line, key in enumerate(sorted(rows)) for place, panel in enumerate(rows[key])
        ]
        for axes, panel in places:
            axes.set_visible(True)
            _scatter(axes, panel, metric, fits, look, tooltips)
            for backbone in panel.backbones:
                _level_lines(axes, panel, backbone, metric, baselines, look, tooltips)
            _name_methods([axes], panel)
            above = ABOVE + 2 + 22 * len(panel.backbones)
            axes.set_title(f"{panel.key.data} ({panel.key.domain}), {panel.key.partition}", pad=above)
            for line, backbone in enumerate(reversed(panel.backbones)):
                axes.annotate(
                    _slope_text(_find(fits, panel, backbone, metric)),
                    (0, 1),
                    (0, ABOVE + 22 * line),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    color=look.backbone[backbone],
                    fontsize=8,
                )
            axes.tick_params(labelleft=True)
            axes.set_xlabel(PARAMETERS)
        for axes in grid[:, 0]:
            axes.set_ylabel(f"{metric_name(metric)} (%)")
        handles = [Line2D([], [], color=look.backbone[name], linewidth=3, label=name) for name in backbones]
        levels = {
            name for panel in panels for one in panel.backbones for name in _levels(panel, one, metric, baselines)
        }
        handles += [
            Line2D([], [], color="#555555", linewidth=1, linestyle=style, label=name)
            for name, style in LEVELS.items()
            if name in levels
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    shown = [one for panel in panels for name in panel.backbones if (one := _find(fits, panel, name, metric))]
    caption = " ".join(
        [
            f"{metric_name(metric).capitalize()} of each method against what a site sends in a round.",
            *([BARS.format("seeds or folds")] if any(_has_bars(panel, metric) for panel in panels) else ()),
            *_about_lines(shown, "seeds or folds"),
            *(["Which site alone is best is told by the test images."] if ALONE in levels else ()),
        ]
    )
    return Figure("slopes.svg", to_svg(canvas, tooltips, "slopes", caption), caption)


def _levels(panel: Panel, backbone: str, metric: str, baselines: list[BaselineRecord]) -> dict[str, float]:
    """What `LEVELS` reach, mean over seeds."""
    found: dict[str, float] = {}
    for name, by_metric in comparison_partners(panel, backbone, baselines):
        values = [value for value in by_metric[metric].values() if value is not None]
        if name in LEVELS and values:
            found[name] = over_seeds(values).value
    return found


def _level_lines(
    axes: Axes,
    panel: Panel,
    backbone: str,
    metric: str,
    baselines: list[BaselineRecord],
    look: Look,
    tooltips: Tooltips,
) -> None:
    for name, value in _levels(panel, backbone, metric, baselines).items():
        line = axes.axhline(100 * value, color=look.backbone[backbone], linewidth=1, linestyle=LEVELS[name], alpha=0.8)
        tooltips.add(line, f"{name}, {backbone}: {100 * value:.1f} % {metric_name(metric)}")


def panel_figure(panel: Panel, fits: list[Fit], look: Look) -> Figure:
    """One panel's three metrics against exchanged parameters, with the methods' names above."""
    tooltips = Tooltips()
    with rc_context(STYLE):
        canvas = Canvas(figsize=(8.4, 7.6), layout="constrained")
        grid = canvas.subplots(len(METRICS), 1, sharex=True)
        for axes, metric in zip(grid, METRICS, strict=True):
            _scatter(axes, panel, metric, fits, look, tooltips)
            axes.set_ylabel(f"{metric_name(metric)} (%)")
            handles = [
                _marker("o", look.backbone[name], f"{name}\n{_slope_text(_find(fits, panel, name, metric))}")
                for name in panel.backbones
            ]
            axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, labelspacing=1)
        grid[-1].set_xlabel(PARAMETERS)
        _name_methods(grid, panel)
    shown = [one for one in fits if one.panel == panel.key]
    caption = " ".join(
        [
            f"{panel.key}: test metrics against exchanged parameters.",
            *([BARS.format(panel.units)] if any(_has_bars(panel, metric) for metric in METRICS) else ()),
            *_about_lines(shown, panel.units),
        ]
    )
    name = _slug(*panel.key, "slopes")
    return Figure(f"figures/{name}.svg", to_svg(canvas, tooltips, name, caption), caption)


def site_bars(panel: Panel, backbone: str) -> Figure:
    """Balanced accuracy on each site's test images, by method; a black line is that on all images together."""
    models = panel.models(backbone)
    sites = sorted({site for model in models for cell in panel.cells[model].values() for site in cell.final.test.sites})
    palette = _palette(len(sites))
    tooltips = Tooltips()
    width = 0.8 / max(1, len(sites))
    with rc_context(STYLE):
        canvas = Canvas(figsize=(max(5.5, 1.6 + 0.8 * len(models)), 3.2), layout="constrained")
        axes = canvas.subplots()
        for index, site in enumerate(sites):
            for place, model in enumerate(models):
                tests = [cell.final.test.sites for cell in panel.cells[model].values()]
                if not all(site in test for test in tests):
                    continue
                found = over_seeds([test[site].balanced_accuracy for test in tests])
                left = place - 0.4 + (index + 0.5) * width
                (bar,) = axes.bar(left, 100 * found.value, 0.9 * width, color=palette[index], alpha=0.85)
                tooltips.add(bar, f"{model.method}, {site}: {percent(found).text} % balanced accuracy")
        for place, model in enumerate(models):
            found = panel.estimate(model, "balanced_accuracy")
            if found is None:
                continue
            (line,) = axes.plot([place - 0.44, place + 0.44], [100 * found.value] * 2, color="black", linewidth=1.5)
            tooltips.add(line, f"{model.method}, all sites: {percent(found).text} % balanced accuracy")
        axes.set_xticks(range(len(models)), [model.method for model in models], rotation=30, ha="right")
        axes.set_ylim(0, 100)
        axes.set_ylabel("balanced accuracy (%)")
        handles = [
            Line2D([], [], color=colour, linewidth=6, label=site) for site, colour in zip(sites, palette, strict=True)
        ]
        handles.append(Line2D([], [], color="black", linewidth=1.5, label="all images"))
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, ncols=1 + len(sites) // 12)
    caption = f"{panel.key}, {backbone}: each site's test images, mean over {panel.units}; the line: all images."
    name = _slug(*panel.key, backbone, "sites")
    return Figure(f"figures/{name}.svg", to_svg(canvas, tooltips, name, caption), caption)


def learning_curves(panel: Panel, backbone: str, look: Look, metric: str = "balanced_accuracy") -> Figure | None:
    """Validation metric after each round, mean over sites and seeds; None where nothing was validated."""
    curves = {model: mean_curve(panel, model, metric) for model in panel.models(backbone)}
    curves = {model: curve for model, curve in curves.items() if curve}
    if not curves:
        return None
    tooltips = Tooltips()
    with rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 3.4), layout="constrained")
        axes = canvas.subplots()
        for model, curve in curves.items():
            colour, marker = look.method[model.method], look.marker[model.method]
            axes.plot(list(curve), [100 * found.value for found in curve.values()], color=colour, linewidth=1.2)
            for rounds, found in curve.items():
                (point,) = axes.plot(rounds, 100 * found.value, marker, color=colour, markersize=4)
                tooltips.add(
                    point,
                    f"{model.method}, rounds done: {rounds}, {percent(found).text} % validation {metric_name(metric)}",
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("rounds")
        axes.set_ylabel(f"validation {metric_name(metric)} (%)")
        handles = [_marker(look.marker[model.method], look.method[model.method], model.method) for model in curves]
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    caption = f"{panel.key}, {backbone}: validation {metric_name(metric)} by round, mean over sites and {panel.units}."
    name = _slug(*panel.key, backbone, "curves")
    return Figure(f"figures/{name}.svg", to_svg(canvas, tooltips, name, caption), caption)


def forest(panel: Panel, differences: list[Difference], metric: str = "balanced_accuracy") -> Figure | None:
    """Differences between initial models with their intervals; None where none is defined."""
    rows = [(one, found.over_seeds) for one in differences if (found := one.by_metric[metric])]
    if not rows:
        return None
    tooltips = Tooltips()
    with rc_context(STYLE):
        canvas = Canvas(figsize=(6.6, 1.1 + 0.24 * len(rows)), layout="constrained")
        axes = canvas.subplots()
        axes.axvline(0, color="#999999", linewidth=0.8)
        for place, (row, found) in enumerate(rows):
            colour = "black" if row.method is None else BACKBONE_COLOURS[0]
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.2)
            (point,) = axes.plot(found.value, place, "D" if row.method is None else "o", color=colour, markersize=6)
            tooltips.add(point, f"{_row_name(row)}: {in_points(found)} points of {metric_name(metric)}")
        axes.set_yticks(range(len(rows)), [_row_name(row) for row, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel(f"difference in {metric_name(metric)} (points)")
    intervals = f", with 95 % intervals over {panel.units}" if any(one.low is not None for _, one in rows) else ""
    caption = f"{panel.key}: differences between initial models, paired{intervals}."
    name = _slug(*panel.key, "initial-models")
    return Figure(f"figures/{name}.svg", to_svg(canvas, tooltips, name, caption), caption)


def tuning_curves(title: str, choices: list[ChoiceRecord], metric: str, look: Look) -> Figure | None:
    """Validation metric against the learning rate; what was chosen is ringed. None where no trial finished."""
    tooltips = Tooltips()
    methods = []
    with rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 3.4), layout="constrained")
        axes = canvas.subplots()
        rates = sorted({trial.learning_rate for choice in choices for trial in choice.trials})
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.set_xticks([], minor=True)
        for choice in choices:
            method, chosen = choice.axes.method, choice.settings
            trials = sorted(
                ((one, 100 * one.val) for one in choice.trials if one.val is not None),
                key=lambda trial: trial[0].learning_rate,
            )
            if trials:
                methods.append(method)
            for options in {str(one.options): one.options for one, _ in trials}.values():
                same = [(one.learning_rate, value) for one, value in trials if one.options == options]
                axes.plot(*zip(*same, strict=True), color=look.method[method], linewidth=1.2)
            for one, value in trials:
                style: dict[str, Any] = CHOSEN if one is chosen else {"markersize": 4}
                (point,) = axes.plot(one.learning_rate, value, look.marker[method], color=look.method[method], **style)
                was = ", chosen" if one is chosen else ""
                tooltips.add(point, f"{method}, {settings(one)}: {value:.1f} %{was}")
        axes.set_xlabel("learning rate")
        axes.set_ylabel(f"validation {metric_name(metric)} (%)")
        handles = [_marker(look.marker[name], look.method[name], name) for name in dict.fromkeys(methods)]
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    if not methods:
        return None
    caption = f"{title}: validation value of each trial; the chosen one has a black edge."
    name = _slug(title, "tuning")
    return Figure(f"figures/{name}.svg", to_svg(canvas, tooltips, name, caption), caption)


def settings(trial: TriedSettings) -> str:
    """A trial's choices in words."""
    head = f", head {trial.head_learning_rate:g}" if trial.head_learning_rate is not None else ""
    options = ", ".join(f"{name} {value}" for name, value in trial.options.items())
    return f"learning rate {trial.learning_rate:g}{head}" + (f", {options}" if options else "")


def _scatter(axes: Axes, panel: Panel, metric: str, fits: list[Fit], look: Look, tooltips: Tooltips) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    for backbone in panel.backbones:
        colour = look.backbone[backbone]
        found = _find(fits, panel, backbone, metric)
        if found:
            ends = [found.smallest, found.largest]
            axes.plot(ends, [found.points(end) for end in ends], color=colour, linewidth=1.2, linestyle="--", alpha=0.7)
        for model in panel.models(backbone):
            estimate, size = panel.estimate(model, metric), panel.exchanged[model]
            if estimate is None or not size:
                continue
            if estimate.low is not None and estimate.high is not None:
                ends = np.clip([100 * estimate.low, 100 * estimate.high], 0, 100)
                axes.plot([size, size], ends, color=colour, linewidth=0.9, alpha=0.6)
            (point,) = axes.plot(
                size,
                100 * estimate.value,
                look.marker[model.method],
                color=colour,
                markersize=7,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
            tooltips.add(
                point,
                f"{model.method}, {backbone}: {percent(estimate).text} % {metric_name(metric)}, "
                f"{count(size).text} parameters",
            )


def _has_bars(panel: Panel, metric: str) -> bool:
    drawn = (panel.estimate(model, metric) for model, size in panel.exchanged.items() if size)
    return any(one and one.low is not None for one in drawn)


def _about_lines(fits: list[Fit], units: str) -> list[str]:
    """A sentence, where there are lines."""
    said = "Dashed: the least squares line, with its slope in points per decade"
    if any(one.slope.over_seeds.low is not None for one in fits):
        said += f" and 95 % intervals: over {units}, for these methods"
    if any(one.over_methods for one in fits):
        said += "; and over methods too, as if others had been chosen"
    return [f"{said}."] if fits else []


def _name_methods(grid: Sequence[Axes], panel: Panel) -> None:
    """Writes names above the first axes, pushed apart, each with a guide line through all axes."""
    sizes: dict[str, list[float]] = {}
    for model, size in panel.exchanged.items():
        if size:
            sizes.setdefault(model.method, []).append(np.log10(size))
    if not sizes:
        return
    low, high = np.log10(grid[0].get_xlim())
    names = sorted(sizes, key=lambda name: float(np.mean(sizes[name])))
    exact = np.array([np.mean(sizes[name]) for name in names])
    steps = 0.032 * (high - low) * np.arange(len(names))
    # Closest places at that distance: a monotone regression after the steps are subtracted.
    places = isotonic_regression(exact - steps).x + steps
    for name, at, place in zip(names, exact, places, strict=True):
        for axes in grid:
            axes.axvline(10**at, color="#dddddd", linewidth=0.7, zorder=0)
        grid[0].annotate(
            name,
            ((at - low) / (high - low), 1),
            ((place - low) / (high - low), 1.12),
            xycoords="axes fraction",
            textcoords="axes fraction",
            rotation=60,
            rotation_mode="anchor",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0},
        )
    for axes in grid:
        axes.set_xlim(10**low, 10**high)


def _find(fits: list[Fit], panel: Panel, backbone: str, metric: str) -> Fit | None:
    return next((one for one in fits if (one.panel, one.backbone, one.metric) == (panel.key, backbone, metric)), None)


def _slope_text(fit: Fit | None) -> str:
    if fit is None:
        return "no slope"
    others = in_brackets(fit.over_methods) if fit.over_methods else ""
    return f"{in_points(fit.slope.over_seeds)} points/decade\nover methods too: {others or NONE}"


def _marker(marker: str, colour: str | Rgba, label: str) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=6, label=label)


def _row_name(row: Difference) -> str:
    return f"{row.first} \N{MINUS SIGN} {row.second}, {row.method or 'all methods'}"


def _slug(*parts: str) -> str:
    """A file's name, another for other `parts` also where capitals and small letters are one."""
    plain = ".".join(parts)
    name = re.sub(r"[^a-z0-9._]+", "-", plain.lower()).strip("-")
    return name if name == plain else f"{name}-{crc32(plain.encode()):08x}"
