"""The trials that choose a method's settings, the same number for every method, and the choice."""

import itertools
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import Field, JsonValue, field_validator, model_validator

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
    """Learning rates, as multiples of the method's starting value, in ascending order."""
    widen: int = Field(default=0, ge=0, le=20)
    """How many rates more a method may try, each as far beyond the end of its rates as that is from the next, while its
    best one lies at an end."""
    options: dict[str, dict[str, Annotated[list[JsonValue], Field(min_length=1)]]] = Field(default={})
    """Values to try besides, with every learning rate, by elementary method and option: ranks, numbers of prompts."""
    seed: int = Field(ge=0, lt=2**31)
    """Seed of the trials; none of the suite's."""
    each_partition: bool = False
    """Whether settings are chosen on each partition; false: on the first of a task's own, for its others too."""

    @field_validator("factors")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"{', '.join(f'{one:g}' for one in value)} are not in ascending order")
        return value

    @model_validator(mode="after")
    def _has_a_step(self) -> "Tuning":
        if self.widen and len(self.factors) < 2:
            raise ValueError("'widen' needs two factors or more, whose distance is the step")
        return self


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


def further(
    tuning: Tuning, first: Sequence[Settings], tried: Sequence[Settings], values: Sequence[float | None]
) -> Settings | None:
    """The next trial of a method whose best rate lies at an end of those that it tried; None if it makes no other.

    Args:
        tuning: which says how many there may be.
        first: what the method was to try.
        tried: `first` and what came after it.
        values: validation metrics of the `tried`.
    """
    found = best(values)
    if found is None or len(tried) - len(first) >= tuning.widen:
        return None
    chosen = tried[found]
    rates = sorted(one.learning_rate for one in tried if one.options == chosen.options)
    steps = {rates[0]: tuning.factors[0] / tuning.factors[1], rates[-1]: tuning.factors[-1] / tuning.factors[-2]}
    step = steps.get(chosen.learning_rate)
    return Settings(chosen.learning_rate * step, chosen.options) if step else None


def best(values: Sequence[float | None]) -> int | None:
    """Index of the highest validation metric, the first of several; None if no trial has one."""
    known = [(value, -index) for index, value in enumerate(values) if value is not None]
    return -max(known)[1] if known else None
