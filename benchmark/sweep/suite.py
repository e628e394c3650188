"""A suite: a grid of experiments, as a small YAML file in `benchmark/suites`.

    cells = data * partition * backbone * variant * method * seed

Every cell is one `Experiment`, made of the suite's defaults and of the values at its place in the grid. For data in
folds, a seed is the number of a fold.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from benchmark.sweep.gates import Gates
from benchmark.sweep.trials import Tuning
from pt_peft import schema
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Method, Partition, SiteName
from pt_peft.model.method import components
from pt_peft.schema import Strict

SUITES = Path(__file__).parents[1] / "suites"
SHARED = "$PT_PEFT_SHARED"
"""The folder of real data outside the repository; a path of a suite may begin with it."""

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]{0,29}$")]
"""Name of an axis' value in files and reports."""
Sections = dict[str, dict[str, JsonValue]]
"""Fields of an experiment, by section."""


class Part(Strict):
    """The images of every `of`-th patient or lesion of a table, by a hash, so that parts never share one."""

    of: int = Field(ge=2, le=100)
    take: int = Field(ge=0, le=99)
    """Which part, counted from 0."""


class Images(Strict):
    """Where images come from."""

    data: dict[str, JsonValue]
    """The experiment's section ``data``."""
    site: SiteData = SiteData()
    """What they are and where they lie; all simulated sites share them."""
    part: Part | None = None
    """The part of a ``csv`` table that is used; null: all."""


class Task(Images):
    """One value of the data axis."""

    domain: Label
    """How its images relate to the backbone's own. The report's claims are about ``in-domain`` and ``out-of-domain``;
    data with any other label, such as ``generated``, are shown and in no claim."""
    sites: tuple[SiteName, ...] = Field(min_length=1)
    """Names of the simulated sites; those of the table for a ``natural`` partition."""
    partitions: tuple[Label, ...] | None = None
    """The suite's partitions that apply; null: all. The first is that which settings are chosen on."""
    backbones: tuple[Label, ...] | None = None
    """The suite's backbones that apply; null: all."""
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    """Into how many folds the images are dealt (``data.fold`` of the experiment): the run of seed k tests fold k, so
    that fold, training and the draw of a random partition vary together. null: every seed has the same test images, or
    those that it draws."""

    @field_validator("folds")
    @classmethod
    def _can_be_dealt(cls, value: int | None, info: ValidationInfo) -> int | None:
        site = info.data.get("site")
        if value and info.data.get("data", {}).get("source") == "lesions":
            raise ValueError("with data.source 'lesions' each site draws images of its own; null would be right")
        if value and site and site.source in ("npz", "fed_isic2019"):
            raise ValueError(f"with site.source '{site.source}' the published split stays; null would be right")
        return value


class Pretraining(Images):
    """Continued pre-training that makes an initial model, see ``pt-peft pretrain``."""

    objective: Literal["supervised", "mae"] = "supervised"
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float | None = None
    """Null: the objective's own."""


class InitialModel(Strict):
    """One value of the backbone axis."""

    backbone: dict[str, JsonValue] = Field(default={})
    """The experiment's section ``backbone`` without the weights' digest; empty for the embedded one."""
    weights: str | None = None
    """The weights file; null: the embedded one."""
    pretraining: Pretraining | None = None
    """How the weights are trained further, once, before the first cell; null: not at all."""

    @model_validator(mode="after")
    def _complete(self) -> "InitialModel":
        if bool(self.backbone) != bool(self.weights):
            raise ValueError("'backbone' and 'weights' go together")
        if self.pretraining and not self.weights:
            raise ValueError("'pretraining' needs 'weights' to begin with")
        return self


SET_BY_THE_GRID = (
    *("training.learning_rate", "federation.sites", "federation.min_sites", "backbone.sha256", "data.fold"),
)
"""Fields of an experiment that every cell has by its place in the grid."""


class Suite(Strict):
    """A grid over one set of defaults."""

    extends: str | None = Field(default=None, exclude=True)
    """The name of the suite in `benchmark/suites` that this one is laid over, once it is read; null: of none."""
    name: Label
    methods: tuple[str, ...] = Field(min_length=1)
    partitions: dict[Label, Partition] = Field(min_length=1)
    backbones: dict[Label, InitialModel] = Field(min_length=1)
    data: dict[Label, Task] = Field(min_length=1)
    variants: dict[Label, Sections] = Field(default={"default": {}}, min_length=1)
    """Fields of the experiment by the name of what they make of it: an objective (``training``), a way to aggregate, a
    codec (``payload``), options of the methods (``method.options``) …"""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    """Seeds of the runs; for data in folds also the folds' numbers, from 1."""
    defaults: Sections = Field(default={})
    """Fields of every cell's experiment. ``training.precision`` is ``auto`` if this does not say otherwise."""
    options: dict[str, dict[str, JsonValue]] = Field(default={})
    """``method.options`` by elementary method; it holds for all methods that have it as a part."""
    learning_rates: dict[str, Annotated[float, Field(gt=0, le=10)]] = Field(default={})
    """Learning rates by method, in place of the methods' own starting ones."""
    tuning: Tuning | None = None
    """How each method's settings are chosen; null: each has its starting learning rate."""
    baselines: str | None = None
    """The method by which pooled and local baselines are trained; null: no such baselines."""
    gates: Gates = Gates()
    """What must hold before the report concludes anything from the results; a suite that extends this has its own."""

    @field_validator("methods", "baselines")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for name in (value,) if isinstance(value, str) else value or ():
            try:
                components(Method(name=name))
            except UserError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("learning_rates")
    @classmethod
    def _rates_of_methods(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        methods = info.data.get("methods", ())
        if unknown := sorted(value.keys() - set(methods)):
            raise ValueError(f"'{unknown[0]}' is none of the suite's methods ({', '.join(methods)})")
        return value

    @field_validator("seeds")
    @classmethod
    def _number_the_folds(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        for name, task in info.data.get("data", {}).items():
            if task.folds and not all(1 <= seed <= task.folds for seed in value):
                raise ValueError(f"of '{name}', numbers of folds from 1 to {task.folds} would be right")
        return value

    @field_validator("methods", "seeds")
    @classmethod
    def _distinct(cls, value: tuple) -> tuple:
        same = [frozenset(one.split("+")) if isinstance(one, str) else one for one in value]
        if twice := [one for one, key in zip(value, same, strict=True) if same.count(key) > 1]:
            raise ValueError(f"{', '.join(map(str, twice))} are the same")
        return value

    @field_validator("data")
    @classmethod
    def _known_parts(cls, value: dict[str, Task], info: ValidationInfo) -> dict[str, Task]:
        for axis in ("partitions", "backbones"):
            known = set(info.data.get(axis, ()))
            for name, task in value.items():
                mine: tuple[str, ...] | None = getattr(task, axis)
                if known and (unknown := set(mine or ()) - known):
                    raise ValueError(
                        f"'{name}' has {axis[:-1]} '{min(unknown)}', which is none of the suite's "
                        f"({', '.join(sorted(known))})"
                    )
                if known and mine == ():
                    raise ValueError(f"'{name}' has none of the suite's {axis} ({', '.join(sorted(known))})")
        return value

    @field_validator("defaults")
    @classmethod
    def _nothing_of_an_axis(cls, value: Sections) -> Sections:
        return _without(value, ("method.name", "method.options", "partition", *SET_BY_THE_GRID))

    @field_validator("variants")
    @classmethod
    def _nothing_of_another_axis(cls, value: dict[str, Sections]) -> dict[str, Sections]:
        other_axes = ("method.name", "partition", "backbone", "data", *SET_BY_THE_GRID)
        return {name: _without(sections, other_axes) for name, sections in value.items()}

    @field_validator("options")
    @classmethod
    def _options_of_methods(cls, value: dict[str, dict], info: ValidationInfo) -> dict[str, dict]:
        _check_parts(value, info.data.get("methods", ()))
        return value

    @field_validator("tuning")
    @classmethod
    def _tuning_fits(cls, value: Tuning | None, info: ValidationInfo) -> Tuning | None:
        if value is None:
            return None
        if value.seed in info.data.get("seeds", ()):
            raise ValueError(f"seed {value.seed} is one of the suite's own; another would be right")
        _check_parts(value.options, info.data.get("methods", ()))
        return value

    @field_validator("gates")
    @classmethod
    def _gates_fit(cls, value: Gates, info: ValidationInfo) -> Gates:
        known = info.data.get("methods", ())
        with_baselines = (*known, "pooled") if info.data.get("baselines") else known
        for name, floor in value.floors.items():
            if floor.of not in with_baselines:
                raise ValueError(f"'{name}' is of '{floor.of}', which is none of {', '.join(with_baselines)}")
            for axis, named in (
                ("data", "data"),
                ("partition", "partitions"),
                ("backbone", "backbones"),
                ("variant", "variants"),
            ):
                pattern, there = getattr(floor, axis), info.data.get(named, {})
                if not any(fnmatchcase(one, pattern) for one in there):
                    raise ValueError(f"'{name}' is for {axis} '{pattern}', but the suite has {', '.join(there)}")
        if value.not_below and value.not_below.method not in known:
            raise ValueError(f"'not_below' names '{value.not_below.method}', which is none of {', '.join(known)}")
        if value.rates_inside and not info.data.get("tuning"):
            raise ValueError("'rates_inside' is about trials, and the suite has no 'tuning'")
        return value

    @classmethod
    def read(cls, name: str) -> "Suite":
        """Reads a suite of this repository by its name, or any by its path (ending in .yaml or .yml).

        Raises:
            UserError: if there is none, or naming the field at fault.
        """
        path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
        return schema.parse(cls, _content(path), str(path))

    def places(self) -> Iterator[dict[str, str]]:
        """All combinations of data, partition, backbone and variant that the suite has."""
        for data, partition, backbone, variant in itertools.product(
            self.data, self.partitions, self.backbones, self.variants
        ):
            task = self.data[data]
            if partition in (task.partitions or self.partitions) and backbone in (task.backbones or self.backbones):
                yield {"data": data, "partition": partition, "backbone": backbone, "variant": variant}

    @property
    def cells(self) -> int:
        """How many cells it has; trials and baselines are none."""
        return sum(1 for _ in self.places()) * len(self.methods) * len(self.seeds)

    def tuned_on(self, place: Mapping[str, str]) -> str:
        """The partition whose choice of settings holds at a place of the grid."""
        if self.tuning and self.tuning.each_partition:
            return place["partition"]
        return (self.data[place["data"]].partitions or tuple(self.partitions))[0]


def _content(path: Path) -> dict:
    """The suite in `path`, laid over the one that it ``extends``. Raises UserError."""
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SUITES.glob("*.yaml")))
        raise UserError(f"suite {path}: is not a file; the suites here are {known}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no fields; see {SUITES / 'smoke.yaml'} for a suite.")
    base = content.pop("extends", None)
    if base is None:
        return content
    base_path = SUITES / f"{base}.yaml"
    if base_path == path or not base_path.is_file():
        raise UserError(f"{path}: field 'extends' is {base!r}, which is no other suite in {SUITES}.")
    below = _content(base_path)
    below.pop("gates", None)  # they are about that one's grid
    for axis, names in content.items():
        if isinstance(names, list) and isinstance(below.get(axis), dict):
            # A list of names takes these values of the axis, and no other.
            if unknown := [name for name in names if not (isinstance(name, str) and name in below[axis])]:
                raise UserError(
                    f"{path}: field '{axis}': '{base}' has no {unknown[0]!r}; it has {', '.join(below[axis])}."
                )
            below[axis] = {name: below[axis][name] for name in names}
            content[axis] = {}
    for task in below.get("data", {}).values():
        for axis in ("partitions", "backbones"):
            if task.get(axis):
                task[axis] = [name for name in task[axis] if name in below[axis]]
    return overlaid(below, content)


def _without(sections: Sections, fields: Iterable[str]) -> Sections:
    """Returns `sections`. Raises ValueError if they have one of `fields`."""
    for field in fields:
        section, _, name = field.partition(".")
        if name in sections.get(section, {}) or (not name and section in sections):
            raise ValueError(f"'{field}' is not for this field to set: each cell has its own by its place in the grid")
    return sections


def _check_parts(options: Iterable[str], methods: Iterable[str]) -> None:
    """Raises ValueError for options of an elementary method that is no part of the `methods`."""
    parts = {part.name for method in methods for part, _ in components(Method(name=method))}
    if unknown := sorted(set(options) - parts):
        raise ValueError(f"'{unknown[0]}' is no part of the suite's methods; the parts are {', '.join(sorted(parts))}")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a field that is there twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"field '{twice[0]}' is there twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def overlaid(below: dict, above: dict) -> dict:
    """`below` with the fields of `above` in place of its own, dictionary by dictionary."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlaid(merged[key], value) if nested else value
    return merged


def expanded(path: str) -> str:
    """`path` with the folder of real data in place of `SHARED`. Raises UserError if it is not there."""
    if path != SHARED and not path.startswith(f"{SHARED}/"):
        return str(Path(path).resolve())  # FLARE's processes have other working directories
    whole = Path(os.environ.get("PT_PEFT_SHARED", "../shared")).resolve() / path.removeprefix(SHARED).lstrip("/")
    if not whole.exists():
        raise UserError(f"PT_PEFT_SHARED: {whole} does not exist; set it to the folder that holds 'data'.")
    return str(whole)
