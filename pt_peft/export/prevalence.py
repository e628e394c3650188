"""Moves a trained model's probabilities to the prevalence of the classes at hand (`pt_peft.statistics.prevalence`)."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from pt_peft.data.delimited import read_rows
from pt_peft.errors import UserError
from pt_peft.experiment.prevalence import ClassCounts, KnownPrevalence
from pt_peft.experiment.sections import ModelSpec
from pt_peft.schema import read_json
from pt_peft.statistics.moments import Float
from pt_peft.statistics.prevalence import estimated, shift, smoothed

Prior = str | Path | Mapping[str, float]
"""``uniform``, ``federation``, ``em``, the path of a file, or a prevalence or count by class."""
NAMED = ("uniform", "federation", "em")
LEAST_IMAGES = 25
"""Images for each class from which on ``em`` estimates, a rule of thumb; a label has two classes, there and not there.
From one image alone the estimate is one class for certain."""


@dataclass(frozen=True, eq=False)
class Move:
    """From the prevalence at which a model learned to another."""

    learnt: Float
    """Shares float64 (K,); 0 or 1 for a class of which there was none, or nothing else: its logit stays as it is."""
    wanted: Float | None
    """Shares float64 (K,); None: those that `estimated` finds."""
    multilabel: bool

    def __call__(self, logits: npt.NDArray[np.floating]) -> tuple[Float, Float]:
        """Logits (N,K) at the wanted prevalence, float64, and that prevalence, float64 (K,).

        Raises:
            UserError: if they are too few to estimate it, see `LEAST_IMAGES`.
        """
        wanted = self.wanted
        if wanted is None:
            least = LEAST_IMAGES * (2 if self.multilabel else len(self.learnt))
            if len(logits) < least:
                raise UserError(
                    f"prior 'em': there are {len(logits)} images, from which the prevalence cannot be estimated; at "
                    f"least {least} ({LEAST_IMAGES} for each class), or a prevalence that is known, would be right."
                )
            wanted = estimated(logits, self.learnt, self.multilabel)
        return logits + shift(self.learnt, wanted, self.multilabel), wanted


def move_to(prior: Prior, spec: ModelSpec, known: KnownPrevalence, where: str) -> Move:
    """What moves a model's probabilities to a prevalence.

    Args:
        prior: the prevalence.
        spec: has the classes and the task. The grades of ``ordinal`` have one softmax, and move as classes do.
        known: of the model's header.
        where: beginning of the errors: the option or argument.

    Raises:
        UserError: if the header does not tell what `prior` needs, or `prior` is none.
    """
    multilabel, classes = spec.task == "multilabel", len(spec.classes)
    even = np.full(classes, 0.5 if multilabel else 1 / classes)
    old = _learnt(even, known, where)
    match prior:
        case "uniform":
            return Move(old, even, multilabel)
        case "federation":
            return Move(old, _shares(_counts(known, where), even), multilabel)
        case "em":
            return Move(old, None, multilabel)
        case Mapping():
            return Move(old, _wanted(prior, spec, where), multilabel)
        case str() | Path():
            return Move(old, _wanted(_read(Path(prior), where), spec, f"{where}: {prior}"), multilabel)
        case _:
            raise UserError(
                f"{where}: is a {type(prior).__name__}; one of {', '.join(map(repr, NAMED))}, a file, or a mapping of "
                "classes to their prevalence or count would be right."
            )


def _learnt(even: Float, known: KnownPrevalence, where: str) -> Float:
    match known.learnt_prevalence:
        case "uniform":
            return even
        case "training":
            counts = _counts(known, where)
            images = np.array(counts.counts)
            only = np.where(images == 0, 0.0, 1.0)  # of which nothing was learned
            return np.where((images == 0) | (images == counts.images), only, _shares(counts, even))
        case "neither":
            raise UserError(
                f"{where}: the model's probabilities are for no known prevalence: it was trained with "
                "training.imbalance 'fedlc', with 'weighted_sampler' and several labels, or with 'none' and "
                "aggregation.weighting 'class_samples'; a model with 'balanced_softmax' would be right."
            )
        case None:
            raise UserError(
                f"{where}: the model's header does not say which prevalence its probabilities are for; an older "
                "version wrote it, and a model of this version would be right."
            )


def _counts(known: KnownPrevalence, where: str) -> ClassCounts:
    if known.class_counts is None:
        raise UserError(
            f"{where}: needs the class counts of the federation, which the model's header does not have: the server "
            "knew neither how many training images of each class the sites have nor validation metrics of this "
            "aggregate; the final or best adapter of a run with validation images would be right."
        )
    return known.class_counts


def _shares(counts: ClassCounts, even: Float) -> Float:
    return smoothed(np.array(counts.counts, np.float64), counts.images, even)


def _read(path: Path, where: str) -> Mapping[str, object]:
    """The values by class in a file. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{where}: '{path}' is neither {', '.join(map(repr, NAMED))} nor a file.")
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f'{where}: {path} is no object by class; {{"CLASS": 0.2, …}} would be right.')
        return cast(Mapping[str, object], content)
    found: dict[str, object] = {}
    for line, row in read_rows(path, {"class": ", which names the class of a row"}):
        name, others = row["class"], [cell for column, cell in row.items() if column != "class"]
        if len(others) != 1 or name in found:
            wrong = f"has class '{name}' twice" if name in found else f"has {len(others)} columns beside 'class'"
            raise UserError(
                f"{where}: {path}, line {line}, {wrong}; one row for each class, with its prevalence or count in one "
                "other column, would be right."
            )
        found[name] = _number(others[0])
    return found


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _wanted(given: Mapping[str, object], spec: ModelSpec, where: str) -> Float:
    """The shares that `given` has, float64 (K,): as they are for labels, else relative to their sum."""
    if unknown := [str(name) for name in given if name not in spec.classes]:
        close = difflib.get_close_matches(unknown[0], spec.classes, n=1)
        right = f"did you mean '{close[0]}'?" if close else f"its classes are {', '.join(spec.classes)}."
        raise UserError(f"{where}: '{unknown[0]}' is no class of the model; {right}")
    if missing := [name for name in spec.classes if name not in given]:
        raise UserError(f"{where}: has no value for class {', '.join(map(repr, missing))}; each class needs one.")
    multilabel = spec.task == "multilabel"
    for name, value in given.items():
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else _float(value)
        if not (0 < number < (1 if multilabel else math.inf)):
            kind = "a share of the images above 0 and below 1" if multilabel else "a number above 0"
            why = "; at 0 the class would be ruled out, whatever an image shows" if number == 0 else ""
            raise UserError(f"{where}: class '{name}' has the value {value!r}; {kind} would be right{why}.")
    values = np.array([float(cast(float, given[name])) for name in spec.classes])
    if multilabel:
        return values
    values = values / values.max()  # of which the sum is finite
    if not values.all():
        least, most = (spec.classes[int(place)] for place in (values.argmin(), values.argmax()))
        raise UserError(
            f"{where}: class '{least}' has the value {given[least]!r}, which is nothing beside {given[most]!r} of "
            f"'{most}'; counts or shares of the same images would be right."
        )
    return values / values.sum()


def _float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
