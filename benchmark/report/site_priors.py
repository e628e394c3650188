r"""What a federated model reaches where each site brings its own class frequencies to its images.

The logits z of ``balanced_softmax`` are log p(x | c), up to a constant: they do not know how frequent a class is, at
this site or at that. Pooled training does: where an image shows which site it is from, it shows how frequent classes
are there. A site k can say as much for its own images:

    z_c + log p_k(c) - log p(c),    p_k(c) = (n_kc + p(c)) / (n_k + 1),    p(c) = Σ_k n_kc / Σ_k n_k

with n_kc training images of class c at k. That answers with the class that has the highest p(x, k | c), which is best
in balanced accuracy over the images of all sites if p(x | c) is the same at all (`pt_peft.statistics.prevalence`). One
image more, spread over the classes as the images of all sites are, keeps a class possible of which a site has none.
"""

from typing import cast

import numpy as np

from benchmark.measurements.intervals import over_seeds, paired
from benchmark.report.baselines import baseline_tests
from benchmark.report.blocks import Table, percent, points, runs, text
from benchmark.report.panels import Panel
from benchmark.report.statistics import METRICS, WeightedMetrics
from benchmark.sweep.records import BaselineRecord, CellRecord, metric_of
from pt_peft.statistics.moments import Float
from pt_peft.statistics.prevalence import shift, smoothed

SHOWN = ("balanced_accuracy", "auroc")


def prior_shift(counts: Float) -> Float:
    """What is added to the logits of each site, float64 (S,K), by its training images of each class, (S,K).

    A class that no site has gets 0.
    """
    federation = counts.sum(axis=0) / counts.sum()
    own = smoothed(counts, counts.sum(axis=1, keepdims=True), federation)
    return shift(federation, own)


def with_site_priors(cell: CellRecord) -> dict[str, float] | None:
    """`METRICS` on all sites' test images; None where counts are unknown, or the objective is another."""
    training = cast(dict[str, object], cell.experiment.get("training", {}))
    if cell.class_counts is None or training.get("imbalance") != "balanced_softmax":
        return None
    predictions = cell.predictions
    shift = prior_shift(np.array([cell.class_counts[site] for site in predictions.sites], np.float64))
    found = WeightedMetrics(predictions.logits + shift[predictions.site], predictions.labels)
    return dict(zip(METRICS, found(np.ones((len(predictions.labels), 1), np.float32))[:, 0].tolist(), strict=True))


def site_prior_table(panel: Panel, backbone: str, baselines: list[BaselineRecord]) -> Table | None:
    """The methods' metrics with each site's own class frequencies; None where no cell has them.

    Pooled training, which stands beside them, is as it is: it has no sites.
    """
    pooled = baseline_tests(panel, backbone, baselines).get("pooled", {})
    rows = []
    for model in panel.models(backbone):
        found = {seed: with_site_priors(cell) for seed, cell in panel.cells[model].items()}
        known = {seed: one for seed, one in found.items() if one}
        if len(known) < len(found):
            continue
        own = {metric: {seed: one[metric] for seed, one in known.items()} for metric in SHOWN}
        rows.append(
            [
                text(model.method),
                *(percent(over_seeds(list(own[metric].values()))) for metric in SHOWN),
                *(points(paired(own[metric], panel.tested(model, metric))) for metric in SHOWN),
                *(
                    points(paired(own[metric], {seed: metric_of(test.pooled, metric) for seed, test in pooled.items()}))
                    for metric in SHOWN
                ),
                runs(known, panel.units),
                runs(known.keys() & pooled.keys(), panel.units),
            ]
        )
    names = ("balanced accuracy", "AUROC")
    header = ["method", *(f"{name} (%)" for name in names), *(f"{name} more than without" for name in names)]
    header += [*(f"{name} less pooled" for name in names), panel.units, f"{panel.units} with pooled"]
    caption = (
        f"{panel.key}, {backbone}: with each site's own class frequencies for its images, mean ± 95 % interval over "
        f"{panel.units}, and paired differences in points"
    )
    return Table(caption, header, rows) if rows else None
