"""The trials that choose a method's settings, the same number for every method, and the choice."""

import itertools
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import Field, JsonValue

from pt_peft.experiment.sections import Method
from pt_peft.model.method import components
from pt_peft.schema import Strict

Options = dict[str, dict[str, JsonValue]]
"""As in ``method.options``: by elementary method and option."""


class Tuning(Strict):
    """How each method chooses its settings.

    Each tries the same number of learning rates, in the federation, and keeps the one with the best final validation
    metric. No test image is looked at.
    """

    factors: tuple[Annotated[float, Field(gt=0, le=1e4)], ...] = Field(min_length=1)
    """Learning rates, as multiples of the method's starting value."""
    options: dict[str, dict[str, Annotated[list[JsonValue], Field(min_length=1)]]] = Field(default={})
    """Values to try besides, with every learning rate, by elementary method and option: ranks, numbers of prompts."""
    seed: int = Field(ge=0, lt=2**31)
    """Seed of the trials; none of the suite's."""
    partition: str | None = None
    """The partition that settings are chosen on, for all others too; null: each partition makes its own choice."""


class Settings(NamedTuple):
    """What a trial tries, and what a run then has."""

    learning_rate: float
    options: Options


def trials(tuning: Tuning, method: str, rate: float) -> list[Settings]:
    """What `method` tries; its starting learning rate is `rate`."""
    rates = [rate * factor for factor in tuning.factors]
    grid = [
        [(part.name, option, value) for value in values]
        for part, _ in components(Method(name=method))
        for option, values in tuning.options.get(part.name, {}).items()
    ]
    return [Settings(rate, _by_part(combination)) for rate in rates for combination in itertools.product(*grid)]


def _by_part(combination: Sequence[tuple[str, str, JsonValue]]) -> Options:
    options: Options = {}
    for part, option, value in combination:
        options.setdefault(part, {})[option] = value
    return options


def best(values: Sequence[float | None]) -> int | None:
    """Index of the highest validation metric, the first of several; None if no trial has one."""
    known = [(value, -index) for index, value in enumerate(values) if value is not None]
    return -max(known)[1] if known else None
