"""Makes the runs that a suite consists of."""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from benchmark.oracle.baselines import BASELINES
from benchmark.sweep.records import OF_THE_FEDERATION, Axes, ChoiceAxes, ChoiceRecord, RunKind, without_federation
from benchmark.sweep.suite import Images, Suite, expanded, overlaid
from benchmark.sweep.trials import Settings, trials
from pt_peft import schema
from pt_peft.data.delimited import read_rows
from pt_peft.data.names import clean
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Method
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of, write_atomically
from pt_peft.model.method import components
from pt_peft.presets import embedded_backbone, starting_rate
from pt_peft.seeds import derive_seed

DEFAULTS = {"training": {"precision": "auto"}}
"""Fields of every cell's experiment, where the suite does not say otherwise."""


@dataclass(frozen=True)
class Cell:
    """One run of a suite as it is planned; its result is an `AnyRun` of `benchmark.sweep.records`."""

    kind: RunKind
    axes: Axes
    experiment: Experiment
    site: Site
    """Settings of all simulated sites."""
    baseline: str | None = None
    """Which of `BASELINES` is trained; None: the federation."""

    @property
    def name(self) -> str:
        """Unique in the suite."""
        return self.experiment.name


class Grid:
    """Makes the cells of a suite."""

    def __init__(self, suite: Suite, weights: Mapping[str, Path | None], cache: Path, *, compiled: bool = False):
        """Looks up where images and weights lie on this machine.

        Args:
            suite: whose cells are made.
            weights: the file of each backbone of the suite; None for the embedded one.
            cache: folder for tables that hold a part of another.
            compiled: whether sites have ``compile``.

        Raises:
            UserError: if a file that the suite names is not there, or two places of the grid have the same name.
        """
        places: dict[str, dict[str, str]] = {}
        for place in suite.places():  # names may have dots: 'a' with 'b.c', and 'a.b' with 'c'
            if (other := places.setdefault(".".join(place.values()), place)) != place:
                raise UserError(
                    f"suite '{suite.name}': {_named(place)} and {_named(other)} would give their cells the same names; "
                    "labels that differ when joined by '.' would be right."
                )
        self._suite = suite
        self._digests = {name: sha256_of(path) for name, path in weights.items() if path}
        self._sites = {
            (data, backbone): Site(
                data=located(task, cache),
                backbone=str(weights[backbone]) if weights[backbone] else None,
                limits=Limits.open(),
                compile=compiled,
            )
            for data, task in suite.data.items()
            for backbone in suite.backbones
            if task.backbones is None or backbone in task.backbones
        }

    def tuning(self) -> Iterator[tuple[ChoiceAxes, list[Settings]]]:
        """For each choice to be made: its axes, and what is tried first."""
        for place in self._suite.places() if self._suite.tuning else ():
            if self._suite.tuning and place["partition"] == self._suite.tuned_on(place):
                for name in (*self._suite.methods, *self._baselines(place)):
                    yield self._axes(place, name), trials(self._suite.tuning, self._method(name), self._rate(name))

    def trials(self, axes: ChoiceAxes, tried: Sequence[Settings]) -> list[Cell]:
        """The cells in which a choice's settings are `tried`. Raises UserError for one that is no valid experiment."""
        place = axes.model_dump(exclude={"domain", "method"})
        seed = self._suite.tuning.seed if self._suite.tuning else 0
        return [
            self._cell("trial", place, axes.method, seed, settings, suffix=f".trial-{index}")
            for index, settings in enumerate(tried)
        ]

    def runs(self, choices: Sequence[ChoiceRecord]) -> Iterator[Cell]:
        """The federated runs and their baselines, in the order of the grid.

        Args:
            choices: the settings that trials chose; a method without a finished trial is left out.

        Raises:
            UserError: naming the cell that is no valid experiment.
        """
        suite = self._suite
        chosen = {
            one.axes: Settings(one.settings.learning_rate, one.settings.options) for one in choices if one.settings
        }
        for place in suite.places():
            for name in (*suite.methods, *self._baselines(place)):
                settings = self._settings(place, name, chosen)
                if settings is None:
                    continue
                for seed in suite.seeds:
                    yield self._cell("baseline" if name in BASELINES else "cell", place, name, seed, settings)

    def _method(self, name: str) -> str:
        """The method that trains `name`, one of the suite's methods or a baseline."""
        return self._suite.baselines if name in BASELINES and self._suite.baselines else name

    def _baselines(self, place: Mapping[str, str]) -> tuple[str, ...]:
        """The baselines at a place: none if an earlier variant differs from this one in the federation alone."""
        variants = self._suite.variants
        mine = without_federation(variants[place["variant"]])
        first = next(name for name, one in variants.items() if without_federation(one) == mine)
        return BASELINES if self._suite.baselines and first == place["variant"] else ()

    def _rate(self, name: str) -> float:
        """The starting learning rate of a method or a baseline."""
        method = self._method(name)
        return self._suite.learning_rates.get(method) or starting_rate(method)

    def _settings(self, place: Mapping[str, str], name: str, chosen: Mapping[ChoiceAxes, Settings]) -> Settings | None:
        if self._suite.tuning is None:
            return Settings(self._rate(name), {})
        return chosen.get(self._axes({**place, "partition": self._suite.tuned_on(place)}, name))

    def _axes(self, place: Mapping[str, str], method: str) -> ChoiceAxes:
        return ChoiceAxes(domain=self._suite.data[place["data"]].domain, **place, method=method)

    def _cell(
        self, kind: RunKind, place: Mapping[str, str], name: str, seed: int, settings: Settings, suffix: str = ""
    ) -> Cell:
        suite, task, method = self._suite, self._suite.data[place["data"]], self._method(name)
        axes = Axes(**self._axes(place, name).model_dump(), seed=seed)
        # Trials are on the first fold, whose test images they do not see.
        fold = {"number": suite.seeds[0] if kind == "trial" else seed, "of": task.folds} if task.folds else None
        fields = {
            "name": axes.run + suffix,
            "seed": seed,
            "backbone": self._backbone(place["backbone"]),
            "data": {**task.data, "fold": fold},
            "partition": suite.partitions[place["partition"]].model_dump(mode="json"),
            "method": {"name": method, "options": overlaid(self._options(method), settings.options)},
            "training": {"learning_rate": settings.learning_rate},
            "federation": {"sites": list(task.sites), "min_sites": len(task.sites)},
        }
        # A variant's fields replace those of the axes, which replace the suite's defaults, which replace ours.
        defaults = overlaid(DEFAULTS, suite.defaults)
        fields = overlaid(overlaid(defaults, fields), suite.variants[place["variant"]])
        if name in BASELINES:
            fields = {section: value for section, value in fields.items() if section not in OF_THE_FEDERATION}
        # A head starts at zero, so it needs its own step size where the backbone's must be small.
        head_rate = fields["training"].get("head_learning_rate") or 0
        fields["training"]["head_learning_rate"] = max(head_rate, settings.learning_rate)
        experiment = schema.parse(Experiment, fields, f"suite '{suite.name}', cell '{fields['name']}'")
        components(experiment.method)
        site = self._sites[place["data"], place["backbone"]]
        return Cell(kind, axes, experiment, site, name if name in BASELINES else None)

    def _options(self, method: str) -> dict[str, JsonValue]:
        parts = {part.name for part, _ in components(Method(name=method))}
        return {name: options for name, options in self._suite.options.items() if name in parts}

    def _backbone(self, name: str) -> dict[str, JsonValue]:
        if name not in self._digests:
            return embedded_backbone().model_dump(mode="json")
        return {**self._suite.backbones[name].backbone, "sha256": self._digests[name]}


def _named(place: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} '{label}'" for axis, label in place.items())


def located(images: Images, cache: Path) -> SiteData:
    """Finds a suite's images on this machine; writes the table of their part to `cache`.

    Raises:
        UserError: if they are not there, or have no table that could be divided.
    """
    site = images.site.located(expanded).model_copy(update={"pooled": True})
    if images.part is None:
        return site
    column = clean(site.columns.group or site.columns.file)
    if site.source != "csv" or site.table is None:
        raise UserError("suite: field 'part' divides the table of site.source 'csv' alone.")
    if images.part.take >= images.part.of:
        raise UserError(
            f"suite: field 'part.take' is {images.part.take}; less than 'part.of' ({images.part.of}) would be right."
        )
    rows = [row for _, row in read_rows(Path(site.table), {column: ""})]
    part = [row for row in rows if derive_seed(0, "part", row[column]) % images.part.of == images.part.take]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(part)
    content = text.getvalue().encode()
    path = cache / "parts" / f"{hashlib.sha256(content).hexdigest()}.csv"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return site.model_copy(update={"table": str(path)})
