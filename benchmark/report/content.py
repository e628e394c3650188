"""The content of a report, in reading order."""

from collections import Counter, defaultdict

from benchmark.report.answers import answers
from benchmark.report.blocks import Block, Report, Section, in_brackets, in_points
from benchmark.report.comparisons import compare_backbones
from benchmark.report.curves import default_target
from benchmark.report.figures import (
    Look,
    forest,
    learning_curves,
    metric_name,
    overview,
    panel_figure,
    site_bars,
    tuning_curves,
)
from benchmark.report.gates import Verdict, faults, gate_table
from benchmark.report.panels import Panel
from benchmark.report.results import Results
from benchmark.report.site_priors import site_prior_table
from benchmark.report.slopes import Fit, main_panels
from benchmark.report.statistics import FEWEST_SEEDS, GENERATOR_SEED
from benchmark.report.tables import (
    comparison_table,
    failure_table,
    gap_table,
    image_table,
    main_table,
    provenance_table,
    slope_table,
    target_table,
    tuning_table,
)
from benchmark.report.variants import variant_tables
from benchmark.sweep.records import BaselineRecord, CellRecord, ChoiceRecord
from benchmark.sweep.suite import Suite
from pt_peft.errors import UserError
from pt_peft.schema import parse

FEW_SEEDS = 3
NO_ANSWERS = "The claims are not answered: a gate of the suite failed, or no cell is finished."
NO_GATES = "The suite has no gates: nothing checked that training was good enough to conclude from it."
NO_SLOPE = "No slope is defined: that takes two methods that exchange different numbers of parameters and share a seed."


def build(
    results: Results,
    panels: list[Panel],
    fits: list[Fit],
    verdicts: list[Verdict],
    target: float | None,
    replicates: int,
) -> Report:
    """The report of `results`.

    Args:
        results: what the suite's file holds.
        panels: of `results`.
        fits: of `panels`.
        verdicts: on the suite's gates; with a failed one the claims are not answered.
        target: validation value to count the bytes to; None takes 95 % of the best of the same panel and backbone.
        replicates: of the bootstrap.
    """
    look = Look(results)
    sections = [_first_page(results, panels, fits, verdicts, look), _overview(results, panels, fits)]
    sections += [_panel_section(panel, fits, results, look, target) for panel in panels]
    sections += _tuning_sections(results, look)
    failures = failure_table(results)
    if failures:
        sections.append(Section("Failures", [failures]))
    sections.append(Section("How it was done", [_methods(results, replicates), provenance_table(results)]))
    return Report(f"Suite {results.name}", _warnings(results, panels, verdicts), sections)


def _first_page(results: Results, panels: list[Panel], fits: list[Fit], verdicts: list[Verdict], look: Look) -> Section:
    said, tables = answers(results, panels) if panels and not faults(verdicts) else ([NO_ANSWERS], [])
    blocks: list[Block] = [*said]
    if panels:
        blocks.append(overview(main_panels(panels), fits, results.baselines, look))
    return Section("The three claims", [*blocks, *tables, gate_table(verdicts) if verdicts else NO_GATES])


def _overview(results: Results, panels: list[Panel], fits: list[Fit]) -> Section:
    finished = results.cells
    checked = [cell.verification for cell in finished if cell.verification]
    seconds = sum(run.seconds.get("total", 0) for run in results.runs)
    lines = [
        f"{len(finished)} cells finished, {len(results.failed_cells)} failed{_of_planned(results)}. All cells, "
        f"baselines and trials took {seconds:,.0f} seconds ({seconds / 3600:.1f} hours) of run time, added up."
    ]
    engines = Counter(cell.engine for cell in finished)
    lines += [f"Run by engine {name}: {_number(cells, 'cell')}." for name, cells in sorted(engines.items())]
    precisions = Counter(cell.precision for cell in finished if cell.precision)
    lines += [f"Computed in {name}: {_number(cells, 'cell')}." for name, cells in sorted(precisions.items())]
    if checked:
        greatest = max(one.max_difference for one in checked)
        others = ", ".join(sorted({one.engine for one in checked}))
        lines.append(
            f"Run by another engine too ({others}): {_number(len(checked), 'cell')}; the greatest difference between "
            f"the two final aggregates is {greatest:.1e}."
        )
    else:
        lines.append("No cell was run by another engine too.")
    blocks: list[Block] = [" ".join(lines)]
    blocks.append(slope_table(fits) if fits else NO_SLOPE)
    blocks += variant_tables(panels)
    return Section("Overview", blocks)


def _of_planned(results: Results) -> str:
    """How many cells the suite has, where this version can read it."""
    try:
        return f", {parse(Suite, results.suite, results.name).cells} are planned"
    except UserError:
        return ""


def _panel_section(panel: Panel, fits: list[Fit], results: Results, look: Look, target: float | None) -> Section:
    blocks: list[Block] = [panel_figure(panel, fits, look)]
    blocks += [
        _in_words(fit, panel.units) for fit in fits if fit.panel == panel.key and fit.metric == "balanced_accuracy"
    ]
    for backbone in panel.backbones:
        models = panel.models(backbone)
        metric = next(iter(panel.cells[models[0]].values())).select_by
        blocks.append(main_table(panel, backbone, results.baselines))
        if gaps := gap_table(panel, backbone, results.baselines):
            blocks.append(gaps)
        if priors := site_prior_table(panel, backbone, results.baselines):
            blocks.append(priors)
        if images := image_table(panel, backbone):
            blocks.append(images)
        blocks.append(site_bars(panel, backbone))
        curves = learning_curves(panel, backbone, look)
        if curves:
            blocks.append(curves)
        reach = default_target(panel, models, metric) if target is None else target
        if reach is not None:
            blocks.append(target_table(panel, backbone, metric, reach))
    differences = compare_backbones(panel)
    if differences:
        blocks += [block for block in (forest(panel, differences), comparison_table(panel, differences)) if block]
    return Section(str(panel.key), blocks, panel=str(panel.key))


def _in_words(fit: Fit, units: str) -> str:
    others = fit.over_methods and in_brackets(fit.over_methods)
    return (
        f"{fit.backbone}: {in_points(fit.slope.over_seeds)} points of {metric_name(fit.metric)} a decade of exchanged "
        f"parameters, over {len(fit.methods)} methods and {_number(len(fit.seeds), units[:-1])}."
        + (f" As if other methods had been chosen: {others}." if others else "")
    )


def _tuning_sections(results: Results, look: Look) -> list[Section]:
    groups: dict[str, list[ChoiceRecord]] = defaultdict(list)
    for choice in results.choices:
        axes = choice.axes
        groups[f"{axes.data} ({axes.domain}), {axes.partition}, {axes.variant}, {axes.backbone}"].append(choice)
    metric = results.runs[0].select_by
    sections = []
    for title, choices in groups.items():
        curves = tuning_curves(title, choices, metric, look)
        sections.append(
            Section(f"Learning rates: {title}", [*([curves] if curves else []), tuning_table(choices, metric)])
        )
    return sections


def _warnings(results: Results, panels: list[Panel], verdicts: list[Verdict]) -> list[str]:
    found = [f"A gate of the suite failed: {fault}" for fault in faults(verdicts)]
    found += [
        f"Gate {one.gate} is open: it cannot be judged before {_number(len(one.missing), 'planned result')} more "
        f"{'is' if len(one.missing) == 1 else 'are'} there; see the suite's gates."
        for one in verdicts
        if one.state == "open"
    ]
    failed = len(results.failed_cells)
    if failed:
        found.append(f"{_number(failed, 'cell')} of {failed + len(results.cells)} failed; see Failures.")
    fewest = min((len(by_seed) for panel in panels for by_seed in panel.cells.values()), default=None)
    if fewest == 1:
        found.append("Some rows rest on one seed or fold: they have no interval.")
    elif fewest is not None and fewest < FEW_SEEDS:
        found.append(f"Some rows rest on {fewest} seeds or folds: intervals over fewer than {FEW_SEEDS} say little.")
    for panel in panels:
        for backbone in panel.backbones:
            models = panel.models(backbone)
            common, every = set(panel.common_seeds(models)), {seed for model in models for seed in panel.cells[model]}
            if common != every:
                found.append(
                    f"{panel.key}, {backbone}: not every method finished every {panel.units[:-1]}; the slope uses "
                    f"the {_number(len(common), panel.units[:-1])} that all of them have, of {len(every)}."
                )
    if not results.choices:
        found.append(
            "No learning rate was tuned: differences between methods may be differences in how well a guess fits."
        )
    shown: list[CellRecord | BaselineRecord] = [*results.cells, *results.baselines]
    if len({run.precision for run in shown} - {None}) > 1:
        found.append("Some runs were computed in bfloat16 and others in float32: their differences are also those.")
    if any(run.provenance.dirty for run in shown):
        found.append("Some runs come from a working tree with changes that are not in their commit.")
    return found


def _methods(results: Results, replicates: int) -> str:
    tuned = "settings were chosen by the final validation metric" if results.choices else "nothing was tuned"
    return (
        f"Nothing was chosen on test data: {tuned}, and every test value is that of the final round's aggregate. "
        "Test metrics are computed on all sites' test images together. Intervals are Student's t over seeds, of which "
        "a fold is one: of the metric, of the paired difference and of the slope of each seed; with one seed there is "
        "none. Slopes are ordinary least squares, in points (100 times the metric), against log10 of the parameters "
        "that a site sends in a round, head included, over all methods that send any and the seeds that all of them "
        "finished. The interval over seeds and methods takes the methods' distances from the line as random, as "
        f"if others had been chosen. With {FEWEST_SEEDS} seeds or more, intervals over seeds and images add what the "
        "seeds share because they were tested on the same images: the mean covariance of two seeds' values over "
        f"{replicates:,} bootstrap draws of clusters of test images (lesions, patients; generator seed "
        f"{GENERATOR_SEED}), the same draw for all models and seeds; metrics are recomputed from the stored logits. "
        "It is zero for folds, whose images differ: their spread has the images' part already. p values are of paired"
        " t tests over seeds, adjusted by Holm over all slopes of a metric, and over all differences of a metric in a"
        " panel. A method is on the Pareto front if no other is at least as good in both balanced accuracy and "
        "exchanged parameters and better in one. Worst site and spread (best less worst) are of the sites' balanced "
        "accuracy, over the classes that a site's test images have: a site with fewer classes starts higher. ECE is "
        "the expected calibration error over 15 bins of confidence, of the logits as they are: a model "
        "that was trained as if all classes were equally frequent is not calibrated where they are not. Wire "
        "bytes are raw tensors, all sites, all rounds, stages of statistics, both directions."
    )


def _number(value: int, noun: str) -> str:
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"
