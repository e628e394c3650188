"""Compares a classifier from one release of noised sums with DP-SGD's linear probe, at the same epsilon.

    python -m benchmark.measurements.private_head --out benchmark/results/private_head.json
    python -m benchmark.measurements.private_head --data demo --draws 3 --json

Both are the product's own on the pooled features of the frozen backbone, with every site's own noise:
`private_moments`, `repaired` and an LDA head of a fixed shrinkage, and rounds of DP-SGD (`privacy.sample`). DP-SGD's
batch size, number of rounds and step size are the best of `GRID` on the validation images at each epsilon, by one draw
of noise, which it does not pay for. Test images of all sites together; mean and standard deviation over other draws.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from benchmark.measurements.provenance import Provenance, provenance
from benchmark.measurements.results import finish, markdown_table
from benchmark.oracle.baselines import pooled
from benchmark.oracle.reference import federate, load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.data.site_data import FeatureSplit, ImageSplit
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.privacy import Privacy, SamplePrivacy, StatisticsPrivacy
from pt_peft.experiment.site import Site
from pt_peft.files import check_place
from pt_peft.model.backbone import pinned_weights
from pt_peft.presets import demo, ham10000, override
from pt_peft.privacy.accounting import Steps, epsilon
from pt_peft.privacy.draws import Draws, PublicDraws
from pt_peft.privacy.plan import plan, sampling_rate
from pt_peft.privacy.private_moments import Projection, private_moments, repaired
from pt_peft.statistics.closed_form import LinearHead, candidates
from pt_peft.statistics.moments import moments, total
from pt_peft.torch_random import seed_torch
from pt_peft.training.metrics import evaluate_predictions
from pt_peft.training.trainer import LocalTrainer, pick_device

EPSILONS = (1.0, 2.0, 4.0, 8.0)
DELTA = 1e-5
PENALTY = 0.1
"""Shrinkage of the LDA head; noise repairs make the value matter little."""
PROJECTION = 48
METRICS = ("balanced_accuracy", "accuracy", "auroc")
GRID: dict[str, tuple[Any, ...]] = {
    "training.batch_size": (64, 256),
    "federation.rounds": (10, 30),
    "training.head_learning_rate": (1e-2, 1e-1, 1.0, 10.0),
}
"""What DP-SGD may choose."""
MAX_GRAD_NORM = 1.0
PROBE = ["method.name=linear_probe", "method.options={}", "data.augment=[]", "training.imbalance=none"]

Score = dict[str, float]
"""The values of `METRICS` on one split."""


class Spread(TypedDict):
    """A metric over draws of noise."""

    mean: float
    std: float
    """Of the draws, with one degree of freedom less; 0 without noise."""


class Row(TypedDict):
    """One epsilon."""

    epsilon: str
    """``none`` without noise."""
    noise_multiplier: float | None
    """Of the release."""
    all_features: dict[str, Spread]
    """Of a release of all features, by metric."""
    projected: dict[str, Spread]
    """Of a release of `PROJECTION` dimensions."""
    dp_sgd: dict[str, Spread]
    dp_sgd_settings: dict[str, float]
    """The chosen point of the grid, and the noise multiplier at which the site that spends most spends this epsilon."""
    at_edge: list[str]
    """Fields of the grid whose chosen value is its smallest or largest: DP-SGD might do better beyond."""


class Measured(TypedDict):
    """One data set."""

    sites: dict[str, int]
    """Training images by site."""
    max_feature_norm: float
    clipped: float
    """Share of the training images whose features are longer."""
    rows: list[Row]


class ProbeTrainer(LocalTrainer):
    """A trainer of a linear probe that takes all steps on features that are known.

    The product's own trainer computes the frozen backbone anew for each image of DP-SGD's batches; the steps are the
    same.
    """

    def __init__(self, experiment: Experiment, site: Site, known: Mapping[int, npt.NDArray[np.float32]]):
        """Builds the model of `experiment`. Raises UserError as `LocalTrainer` does.

        Args:
            experiment: of a linear probe.
            site: has the weights.
            known: features float32 (N,d) by the `id` of their images' `ImageSplit`.
        """
        self._known = known
        torch.set_num_threads(site.threads or 1)
        super().__init__(experiment, pinned_weights(experiment.backbone, site), pick_device(site.device))
        prefix = self._prefix
        if prefix is None or prefix.blocks is not None:
            raise ValueError("the model is no linear probe")
        self.model.module.forward = prefix.logits

    def _with_features(self, split: ImageSplit, views: tuple[int, ...] | None) -> FeatureSplit:
        return FeatureSplit(self._known[id(split)][:, None], (0,), split.labels)

    def _logits(self, images: torch.Tensor, module: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return module(images).float()

    def _drawn_batches(self, split: ImageSplit, draws: Draws) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        features, labels = torch.from_numpy(self._known[id(split)]), torch.as_tensor(split.labels)
        seed_torch(draws.seed())
        draws.seed()  # the product's seeds augmentation, of which there is none
        rate = sampling_rate(self.experiment, len(split))
        for _ in range(-(-len(split) // self.experiment.training.batch_size)):
            chosen = np.flatnonzero(draws.uniform(len(split)) < rate)
            yield features[chosen], labels[chosen]


class Probe:
    """The features and labels of one data set, and what each kind of privacy makes of them."""

    def __init__(self, experiment: Experiment, site: Site, names: Sequence[str], grid: Mapping[str, tuple[Any, ...]]):
        """Loads the images and computes the features. Raises UserError.

        Args:
            experiment: whose linear probe is taken.
            site: has the images and the weights.
            names: of the sites.
            grid: what DP-SGD may choose.
        """
        self.experiment, self.site, self.grid = override(experiment, PROBE), site, grid
        self.sites = load_sites(self.experiment, site, [*names])
        trainer = make_trainer(self.experiment, site)
        whole = pooled(self.sites)
        self.labels = {split: np.asarray(getattr(whole, split).labels) for split in ("val", "test")}
        self.train = {
            name: (trainer.features({}, data.train, "none"), data.train.labels) for name, data in self.sites.items()
        }
        self.known = {id(data.train): self.train[name][0] for name, data in self.sites.items()}
        self.features = {
            split: np.concatenate([trainer.features({}, getattr(one, split), "none") for one in self.sites.values()])
            for split in ("val", "test")
        }
        norm: Any = trainer.model.module.norm
        self.max_feature_norm = float((norm.weight.square().sum() + norm.bias.square().sum()).sqrt())

    def score(self, head: LinearHead, split: str) -> Score:
        """The metrics of a head on the `split` of all sites."""
        logits = torch.from_numpy(head.logits(self.features[split]))
        found: Any = evaluate_predictions(logits, torch.from_numpy(self.labels[split]))
        return {name: float(found[name]) for name in METRICS}

    def released(self, noise_multiplier: float | None, projection: int | None, draw: int) -> Score:
        """The test metrics of a head from one release of each site; None: without noise, and not clipped."""
        classes = len(self.experiment.data.classes)
        if noise_multiplier is None and projection is None:
            exact = total([moments(*images, classes) for images in self.train.values()])
            return self.score(candidates("lda", exact, None, [PENALTY])[0], "test")
        settings = StatisticsPrivacy(
            noise_multiplier=noise_multiplier or 1.0,
            max_feature_norm=self.max_feature_norm,
            delta=DELTA,
            projection=projection,
        )
        width = self.features["test"].shape[1]
        mapped = Projection.of(settings, draw, width)
        if noise_multiplier is None:
            images = [(mapped.bounded(features), labels) for features, labels in self.train.values()]
            sums = total([moments(*one, classes) for one in images])
        else:
            sent = [
                private_moments(*images, classes, mapped, noise_multiplier, PublicDraws(1000 * draw + number))
                for number, images in enumerate(self.train.values())
            ]
            sums = repaired(total(sent), noise_multiplier, len(sent))
        return self.score(mapped.lifted(candidates("lda", sums, None, [PENALTY])[0]), "test")

    def trained(self, settings: Mapping[str, Any], noise_multiplier: float | None, draw: int) -> LinearHead:
        """The head of rounds of DP-SGD; None: without."""
        experiment = self._with(settings, noise_multiplier).model_copy(update={"seed": draw})
        final: Tensors = federate(ProbeTrainer(experiment, self.site, self.known), self.sites).tensors
        return LinearHead(final["head.weight"].astype(np.float64), final["head.bias"].astype(np.float64))

    def multiplier(self, settings: Mapping[str, Any], target: float) -> float:
        """The noise multiplier at which the site that spends most spends `target` in all rounds."""

        def spent(noise_multiplier: float) -> float:
            experiment = self._with(settings, noise_multiplier)
            rounds = experiment.federation.rounds
            sizes = [len(labels) for _, labels in self.train.values()]
            return max(epsilon(plan(experiment, images, rounds, 0).steps, DELTA) for images in sizes)

        return least_noise(spent, target)

    def _with(self, settings: Mapping[str, Any], noise_multiplier: float | None) -> Experiment:
        experiment = override(self.experiment, [f"{field}={value}" for field, value in settings.items()])
        if noise_multiplier is None:
            return experiment
        sample = SamplePrivacy(noise_multiplier=noise_multiplier, max_grad_norm=MAX_GRAD_NORM, delta=DELTA)
        privacy = Privacy(sample=sample, randomness="insecure_from_public_seed")
        return experiment.model_copy(update={"privacy": privacy})

    def best(self, target: float | None) -> tuple[dict[str, Any], float | None]:
        """The point of the grid with the best balanced accuracy on the validation images, and its noise multiplier."""
        found: list[tuple[float, dict[str, Any], float | None]] = []
        for values in itertools.product(*self.grid.values()):
            settings = dict(zip(self.grid, values, strict=True))
            noise = None if target is None else self.multiplier(settings, target)
            value = self.score(self.trained(settings, noise, 0), "val")["balanced_accuracy"]
            print(f"DP-SGD, epsilon {target}: {settings} {value:.3f}", file=sys.stderr, flush=True)
            found.append((value, settings, noise))
        _, settings, noise = max(found, key=lambda one: one[0])
        return settings, noise

    def row(self, target: float | None, draws: int) -> Row:
        """All kinds at one epsilon; None: without noise."""
        noise = None if target is None else least_noise(_release_epsilon, target)
        settings, sgd_noise = self.best(target)
        seeds = range(1, draws + 1)
        return {
            "epsilon": "none" if target is None else f"{target:g}",
            "noise_multiplier": noise,
            "all_features": spread([self.released(noise, None, seed) for seed in seeds]),
            "projected": spread([self.released(noise, PROJECTION, seed) for seed in seeds]),
            "dp_sgd": spread([self.score(self.trained(settings, sgd_noise, seed), "test") for seed in seeds]),
            "dp_sgd_settings": {**settings, **({} if sgd_noise is None else {"noise_multiplier": sgd_noise})},
            "at_edge": [field for field, values in self.grid.items() if settings[field] in (min(values), max(values))],
        }

    def measured(self, draws: int) -> Measured:
        """All rows."""
        norms: npt.NDArray[Any] = np.concatenate([np.linalg.norm(one, axis=1) for one, _ in self.train.values()])
        return {
            "sites": {name: len(labels) for name, (_, labels) in self.train.items()},
            "max_feature_norm": self.max_feature_norm,
            "clipped": float((norms > self.max_feature_norm).mean()),
            "rows": [self.row(target, draws) for target in (*EPSILONS, None)],
        }


class Result(TypedDict):
    """The content of the result file."""

    provenance: Provenance
    delta: float
    draws: int
    penalty: float
    projection: int
    max_grad_norm: float
    data: dict[str, Measured]


def _release_epsilon(noise_multiplier: float) -> float:
    return epsilon([Steps(rate=1.0, noise_multiplier=noise_multiplier, count=1)], DELTA)


def least_noise(spent: Callable[[float], float], target: float) -> float:
    """The smallest noise multiplier, to four digits, at which `spent` is `target` at most."""
    low, high = 0.1, 1000.0
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if spent(middle) > target else (low, middle)
    return high


def spread(scores: Sequence[Score]) -> dict[str, Spread]:
    """Mean and deviation of each metric over draws."""
    values = {name: np.array([one[name] for one in scores]) for name in METRICS}
    return {
        name: {"mean": float(one.mean()), "std": float(one.std(ddof=1)) if len(one) > 1 else 0.0}
        for name, one in values.items()
    }


def open_probe(name: str) -> Probe:
    """The probe of ``ham10000`` or ``demo``. Raises UserError."""
    if name == "ham10000":
        experiment, site = ham10000()
        return Probe(experiment, site, experiment.federation.sites, GRID)
    experiment, site = demo("linear_probe")
    return Probe(experiment, site, ["site-1", "site-2"], GRID)


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the result file and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.measurements.private_head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ("ham10000", "demo")
    parser.add_argument("--data", nargs="+", choices=names, default=names, help="data sets (default: both)")
    parser.add_argument("--draws", type=int, default=5, help="draws of noise (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.out:
        check_place(options.out)
    result: Result = {
        "provenance": provenance(),
        "delta": DELTA,
        "draws": options.draws,
        "penalty": PENALTY,
        "projection": PROJECTION,
        "max_grad_norm": MAX_GRAD_NORM,
        "data": {name: open_probe(name).measured(options.draws) for name in options.data},
    }
    finish(options, result, table(result))


def table(result: Result) -> str:
    """Balanced accuracy as a Markdown table."""
    header = ["", "epsilon", "all features", f"{result['projection']} dimensions", "DP-SGD", "at the edge of its grid"]
    lines: list[list[str]] = []
    for name, measured in result["data"].items():
        for row in measured["rows"]:
            values = [row[kind]["balanced_accuracy"] for kind in ("all_features", "projected", "dp_sgd")]
            shown = [f"{one['mean']:.3f} ± {one['std']:.3f}" for one in values]
            lines.append([name, row["epsilon"], *shown, ", ".join(row["at_edge"])])
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
