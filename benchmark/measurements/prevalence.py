"""How reliable probabilities are at the prevalence of each site: as trained, and moved as ``predict --prior`` does it.

    python -m benchmark.measurements.prevalence --out benchmark/results/prevalence.json

Takes the finished runs of a suite's panel that trained with ``balanced_softmax`` and whose counts of training images
are known: their logits on the test images of all sites. Every site stands for a ward. ``own`` is a file with the ward's
training counts, ``em`` sees the ward's test images without their labels, ``federation`` is one prevalence for all. Test
labels choose nothing. No model is trained: it takes seconds.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, markdown_table
from benchmark.oracle.predictions import Predictions
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import check_place
from pt_peft.statistics.moments import Float
from pt_peft.statistics.prevalence import estimated, probabilities, shift, smoothed
from pt_peft.training.metrics import CALIBRATION_BINS, evaluate_predictions

WAYS = ("as trained", "federation", "own", "em", "em, together")
METRICS = ("ece", "loss", "accuracy", "balanced_accuracy")
RESULTS = Path("benchmark", "results", "claims.jsonl")


class Spread(TypedDict):
    """A value over runs."""

    mean: float
    least: float
    most: float


class Bin(TypedDict):
    """The images of all runs whose answer has a probability in one of equal bins (a, b]."""

    images: int
    confidence: float
    """Mean probability of the answer."""
    accuracy: float
    """Share of right answers."""


class Row(TypedDict):
    """One way, over all runs."""

    name: str
    metrics: dict[str, Spread]
    """Of all sites' test images together."""
    worst_ece: Spread
    """The largest calibration error of a site's own images."""
    distance: Spread
    """Of the prevalence to the shares of the test labels, mean over sites: half the sum of the differences of the
    classes; uniform for ``as trained``."""
    curve: list[Bin]


class Result(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    results: str
    """The file that the runs are from."""
    runs: list[str]
    commits: list[str]
    """Of the runs."""
    images: int
    """Test images of all runs."""
    rows: list[Row]


def prevalences(counts: Float, logits: Sequence[Float]) -> dict[str, Float]:
    """The prevalence of each site by way, float64 (S,K).

    Args:
        counts: training images (S,K).
        logits: of each site's test images, (n,K), learned at a uniform prevalence.
    """
    sites, classes = counts.shape
    even = np.full(classes, 1 / classes)
    whole = counts.sum(axis=0)
    return {
        "as trained": np.tile(even, (sites, 1)),
        "federation": np.tile(smoothed(whole, whole.sum(), even), (sites, 1)),
        "own": smoothed(counts, counts.sum(axis=1, keepdims=True), even),
        "em": np.stack([estimated(one, even) for one in logits]),
        "em, together": np.tile(estimated(np.concatenate(logits), even), (sites, 1)),
    }


class Run:
    """One run's logits, by way."""

    def __init__(self, cell: Mapping[str, Any]):
        """Reads a line of a result file."""
        self.name, self.commit = cell["name"], cell["provenance"]["commit"]
        found = Predictions.unpack(cell["predictions"])
        self.labels, self.site = found.labels, found.site
        logits = found.logits.astype(np.float64)
        counts = np.array([cell["class_counts"][site] for site in found.sites], np.float64)
        even = np.full(counts.shape[1], 1 / counts.shape[1])
        by_site = [logits[self.site == place] for place in range(len(counts))]
        shares = prevalences(counts, by_site)
        truth = np.stack(
            [np.bincount(self.labels[self.site == place], minlength=len(even)) for place in range(len(counts))]
        )
        truth = truth / truth.sum(axis=1, keepdims=True)
        self.distances = {way: float(np.abs(one - truth).sum(axis=1).mean() / 2) for way, one in shares.items()}
        self.logits = {way: logits + shift(even, one)[self.site] for way, one in shares.items()}

    def scores(self, way: str) -> dict[str, float]:
        """`METRICS` of all images, and ``worst_ece``."""
        found: Any = self._evaluated(way, np.ones(len(self.labels), bool))
        sites: list[Any] = [self._evaluated(way, self.site == place) for place in range(int(self.site.max()) + 1)]
        return {**{name: found[name] for name in METRICS}, "worst_ece": max(one["ece"] for one in sites)}

    def _evaluated(self, way: str, chosen: Any) -> Any:
        return evaluate_predictions(torch.from_numpy(self.logits[way][chosen]), torch.from_numpy(self.labels[chosen]))


def curve(confidences: Float, right: Any) -> list[Bin]:
    """The reliability curve of answers; bins without images are left out."""
    bins = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], confidences)
    return [
        {
            "images": int((bins == place).sum()),
            "confidence": float(confidences[bins == place].mean()),
            "accuracy": float(right[bins == place].mean()),
        }
        for place in np.unique(bins)
    ]


def row(way: str, runs: Sequence[Run]) -> Row:
    """What `Row` says."""
    scores = [one.scores(way) for one in runs]
    shown = np.concatenate([probabilities(one.logits[way]) for one in runs])
    labels = np.concatenate([one.labels for one in runs])
    return {
        "name": way,
        "metrics": {name: _spread([one[name] for one in scores]) for name in METRICS},
        "worst_ece": _spread([one["worst_ece"] for one in scores]),
        "distance": _spread([one.distances[way] for one in runs]),
        "curve": curve(shown.max(axis=1), shown.argmax(axis=1) == labels),
    }


def _spread(values: Sequence[float]) -> Spread:
    return {"mean": float(np.mean(values)), "least": min(values), "most": max(values)}


def read_runs(path: Path, panel: Mapping[str, str]) -> list[Run]:
    """The runs of a result file that `panel` names, in order of their names. Raises UserError if there are none."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--results: {path} cannot be read ({error}).") from None
    cells = [
        one
        for one in lines
        if one.get("kind") == "cell"
        and one.get("class_counts")
        and one["experiment"]["training"].get("imbalance") == "balanced_softmax"
        and all(one["axes"][name] == value for name, value in panel.items())
    ]
    if not cells:
        shown = ", ".join(f"{name} {value}" for name, value in panel.items())
        raise UserError(
            f"--results: {path} has no finished run of {shown} with balanced_softmax and counts of classes."
        )
    return [Run(one) for one in sorted(cells, key=lambda one: one["name"])]


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the result file and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.prevalence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="of a suite (default: %(default)s)")
    for name, value in (("data", "ham10000"), ("partition", "natural"), ("method", "lora_vpt")):
        parser.add_argument(f"--{name}", default=value, help="of the runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.out:
        check_place(options.out)
    origin = provenance()
    runs = read_runs(options.results, {name: vars(options)[name] for name in ("data", "partition", "method")})
    result: Result = {
        "provenance": origin,
        "results": options.results.name,
        "runs": [one.name for one in runs],
        "commits": sorted({one.commit for one in runs}),
        "images": sum(len(one.labels) for one in runs),
        "rows": [row(way, runs) for way in WAYS],
    }
    finish(options, result, table(result))


def table(result: Result) -> str:
    """The rows as a Markdown table."""
    header = ["prevalence", *(name.replace("_", " ") for name in METRICS), "ECE of the worst site", "off by"]
    lines: list[list[str]] = []
    for one in result["rows"]:
        spreads = [*(one["metrics"][name] for name in METRICS), one["worst_ece"], one["distance"]]
        lines.append([one["name"], *(f"{value['mean']:.3f}" for value in spreads)])
    return markdown_table(header, lines, 1)


if __name__ == "__main__":
    sys.exit(main())
