"""What methods are compared with: models that no federation trained, and the largest method."""

from collections import defaultdict
from collections.abc import Mapping

from benchmark.report.panels import Panel
from benchmark.report.results import compared
from benchmark.sweep.records import BaselineRecord, FinalTest, metric_of, without_federation

GAPS = ("balanced_accuracy", "auroc")
"""Metrics that methods are compared in."""
POOLED = "pooled"
ALONE = "the best site alone"


def comparison_partners(
    panel: Panel, backbone: str, baselines: list[BaselineRecord]
) -> list[tuple[str, Mapping[str, Mapping[int, float | None]]]]:
    """What the methods of `panel` are compared with: the name, and its `GAPS` by metric and seed."""
    tested = baseline_tests(panel, backbone, baselines)
    models = panel.models(backbone)
    alone = [of_site for name, of_site in tested.items() if name.startswith("local ")]
    others: list[tuple[str, Mapping[str, Mapping[int, float | None]]]] = []
    if POOLED in tested:
        others.append((POOLED, {metric: _reached(tested[POOLED], metric) for metric in GAPS}))
    if alone:
        best = {metric: _best([_reached(one, metric) for one in alone]) for metric in GAPS}
        others.append((ALONE, best))
    if len(models) > 1:
        others.append((models[-1].method, {metric: panel.tested(models[-1], metric) for metric in GAPS}))
    return others


def _reached(tests: Mapping[int, FinalTest], metric: str) -> dict[int, float | None]:
    return {seed: metric_of(test.pooled, metric) for seed, test in tests.items()}


def _best(sites: list[dict[int, float | None]]) -> dict[int, float | None]:
    """The best of all sites in each seed that all of them have."""
    common = set.intersection(*(set(one) for one in sites))
    return {seed: max((known for one in sites if (known := one[seed]) is not None), default=None) for seed in common}


def baseline_tests(panel: Panel, backbone: str, baselines: list[BaselineRecord]) -> dict[str, dict[int, FinalTest]]:
    """Test metrics of the models that were trained as those of `panel`, without a federation, by name and seed.

    Pooled comes first, the majority class last.
    """
    place = (panel.key.domain, panel.key.data, panel.key.partition, backbone)
    settings = without_federation(compared(next(iter(panel.cells[panel.models(backbone)[0]].values())).experiment))
    found: dict[str, dict[int, FinalTest]] = defaultdict(dict)
    for one in baselines:
        axes = one.axes
        alike = without_federation(compared(one.experiment)) == settings
        if (axes.domain, axes.data, axes.partition, axes.backbone) == place and alike:
            for row in one.rows:
                found[row.name][axes.seed] = row.test
    return dict(
        sorted(found.items(), key=lambda item: (not item[0].startswith("pooled"), item[0].startswith("majority")))
    )
