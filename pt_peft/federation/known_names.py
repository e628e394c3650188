"""The words that may stand in a reason: those that the lead knows already. Imports no torch."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue

import pt_peft
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.admission import IMAGE_STATISTICS, TASKS
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import KEYS
from pt_peft.federation.image_statistics import ImageReport, SplitStatistics
from pt_peft.federation.reports import ChoiceReport, EvaluationReport, SplitMetrics, StatisticsReport, TrainingReport


def known_names(experiment: Experiment | None, exchange: Exchange | None) -> frozenset[str]:
    """What the lead knows of a job.

    Returns:
        Dotted names of all fields of the schemas, of the reports and of a site's limits; names of this package's
        methods and tasks; fields and values of `experiment`; keys of the tensors of `exchange`, also as its codecs name
        them.
    """
    names = {*_schema_names(), *KEYS, *TASKS, IMAGE_STATISTICS}
    if experiment:
        names.update(_content(experiment.model_dump(mode="json")))
        names.update(experiment.method.name.split("+"))
    if exchange:
        names |= exchange.specs.keys()
        if experiment:
            names |= experiment.payload.up.specs(exchange.specs).keys()
            names |= experiment.payload.down.specs(exchange.specs).keys()
    return frozenset(names)


@cache
def _schema_names() -> frozenset[str]:
    reports = (TrainingReport, EvaluationReport, StatisticsReport, ChoiceReport, ImageReport)
    schemas = (Experiment, Site, Limits, *reports, SplitMetrics, SplitStatistics)
    methods = (path.stem for path in (Path(pt_peft.__path__[0]) / "methods").glob("[a-z]*.py"))
    return frozenset([*(name for schema in schemas for name in _fields(schema)), *methods])


def _fields(schema: type[BaseModel]) -> Iterator[str]:
    """Dotted names of the fields of a record and of the records in it."""
    for name, field in schema.model_fields.items():
        yield name
        for nested in _records(field.annotation):
            yield from (f"{name}.{inner}" for inner in _fields(nested))


def _records(annotation: object) -> Iterator[type[BaseModel]]:
    """The records that a field of this type may hold itself; those in lists and tables have names of their own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            yield from _records(part)


def _content(value: JsonValue, path: str = "") -> Iterator[str]:
    """Dotted names of the fields of decoded JSON, and its texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, child in value.items():
            inner = f"{path}.{name}".lstrip(".")
            yield name
            yield inner
            yield from _content(child, inner)
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _content(child, f"{path}.{number}")
