"""The budget that every method gets to choose its learning rate, and the choice."""

import itertools
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import Field, JsonValue

from pt_peft.experiment.sections import Method
from pt_peft.model.method import components
from pt_peft.presets import starting_rate
from pt_peft.schema import Strict


class Tuning(Strict):
    """Each method tries the same number of learning rates, in the federated setting, and keeps the one with the best final
    validation metric. Test images are not looked at.
    """

    factors: tuple[Annotated[float, Field(gt=0, le=1e4)], ...] = Field(min_length=1)
    """Learning rates, as multiples of the method's own starting value."""
    options: dict[str, dict[str, Annotated[list[JsonValue], Field(min_length=1)]]] = {}
    """By elementary method and option the values to try besides, with every learning rate: ranks, numbers of prompts."""
    seed: int = Field(ge=0, lt=2**31)
    """Of the trials; none of the suite's."""
    partition: str | None = None
    """The partition that the choice is made on, for all others too; null: each makes its own."""


class Trial(NamedTuple):
    """One choice."""

    learning_rate: float
    options: dict[str, dict[str, JsonValue]]
    """As in ``method.options``."""


def trials(tuning: Tuning, method: str) -> list[Trial]:
    """What `method` tries."""
    rates = [starting_rate(method) * factor for factor in tuning.factors]
    grid = [
        [(part.name, option, value) for value in values]
        for part, _ in components(Method(name=method))
        for option, values in tuning.options.get(part.name, {}).items()
    ]
    return [Trial(rate, _by_part(combination)) for rate in rates for combination in itertools.product(*grid)]


def _by_part(combination: Sequence[tuple[str, str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
    options: dict[str, dict[str, JsonValue]] = {}
    for part, option, value in combination:
        options.setdefault(part, {})[option] = value
    return options


def best(values: Sequence[float | None]) -> int | None:
    """Which of the trials' validation metrics is the highest, the first of several; None if none has one."""
    known = [index for index, value in enumerate(values) if value is not None]
    return max(known, key=lambda index: values[index], default=None)
