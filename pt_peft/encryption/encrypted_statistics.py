"""Statistics that the server adds up without reading them, and from which each site solves for the classifier itself.

A site encrypts the mean over its images, times their number as its weight, so that the sum over sites decrypts to the
mean over all images (`pt_peft.encryption.ciphertexts`). Sites multiply it by the number of all images and have what an
unencrypted server would have, to the precision of CKKS; counts are rounded to whole numbers. Metrics and losses of the
candidates travel in plain, as all metrics do. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pt_peft.encryption.ciphertexts import Cipher, Sum, parse
from pt_peft.encryption.contexts import Context
from pt_peft.encryption.header import EncryptedHeader
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Array, TensorError, Tensors, TensorSpec, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import FEDERATION_COUNTS, PREFIX, Stage, StageName, When, solved, up_specs
from pt_peft.federation.head_statistics import Choice, HeadStatistics, Report, SolvedHead, solved_tensors
from pt_peft.federation.reports import StatisticsReport
from pt_peft.statistics.closed_form import candidates
from pt_peft.statistics.moments import COUNTS, Float, Moments, class_weights, specs

CHOICE = f"{PREFIX}choice"
"""Key of the chosen penalty and temperature, float64 (2,), which travel down with the sums of ciphertexts."""
_SUMMED: tuple[StageName, ...] = ("counts", "moments")
"""The stages whose statistics are encrypted."""


class EncryptedHeadStatistics(HeadStatistics):
    """The server's end: it holds sums of ciphertexts in place of sums."""

    def __init__(self, experiment: Experiment, exchange: Exchange, when: When, context: Context):
        """Starts before the first stage.

        Args:
            experiment: that the server runs.
            exchange: the experiment's.
            when: the end of the rounds.
            context: the server's, without a secret key.
        """
        super().__init__(experiment, exchange, when)
        self._context = context
        self._ciphertexts: Tensors = {}

    def down(self, stage: Stage) -> Tensors:
        """The sums so far."""
        return {} if stage.name == "counts" else self._ciphertexts

    def check(self, stage: Stage, payload: object, report: Report) -> Tensors:
        """Returns what a site sends in a stage if it can be added up. Raises TensorError if it cannot."""
        if stage.name not in _SUMMED:
            return super().check(stage, payload, report)
        contents = Layout(up_specs(self._experiment, self._exchange, stage)).check(payload)
        parse(contents, self._context)
        return {key: np.frombuffer(content, np.uint8) for key, content in contents.items()}

    def _add_up(self, stage: Stage, results: Mapping[str, Tensors], reports: Mapping[str, Report]) -> None:
        summed = Sum(self._context, Layout(up_specs(self._experiment, self._exchange, stage)))
        images = {site: one.num_samples for site, one in reports.items() if isinstance(one, StatisticsReport)}
        for site, payload in results.items():
            summed.add(payload, images[site])
        self._ciphertexts |= {f"{PREFIX}{stage.name}/{key}": value for key, value in summed.result().items()}
        self._images = sum(images[site] for site in results)

    def head(self, made: SolvedHead) -> Tensors:
        """What each site solves the classifier from."""
        return {**self._ciphertexts, CHOICE: np.array([made["penalty"], made["temperature"]])}

    def state(self) -> Tensors:
        """The sums so far."""
        return self._ciphertexts

    def take_over(self, state: Tensors, sites: Sequence[str]) -> None:
        """Goes on from the `state` of another server. Raises TensorError if it is not the state of this experiment."""
        for stage in self._stages:
            if stage.name in _SUMMED and (found := _of(state, stage.name)):
                _, weight = Layout(up_specs(self._experiment, self._exchange, stage)).check_sum(found)
                self._images = round(weight)
        self._ciphertexts, self._sites = state, [*sites]


@dataclass(frozen=True)
class Decrypted:
    """What a site reads in the sums that have come down."""

    tensors: Tensors
    """The statistics, as they come down without encryption."""
    choice: Array | None
    """Penalty and temperature, once they are chosen."""

    def head(self, experiment: Experiment, exchange: Exchange, when: When) -> Tensors:
        """The classifier's tensors by key. Raises TensorError if something is missing, or the choice is none."""
        kind = solved(experiment, when)
        statistics, weights = dict(self.tensors), None
        if (counts := statistics.pop(FEDERATION_COUNTS, None)) is not None:
            weights = class_weights(counts)
        if kind is None or self.choice is None or not statistics or (kind == "ridge" and weights is None):
            raise TensorError("the statistics that have come are not those from which the classifier follows")
        penalty, temperature = (float(one) for one in self.choice)
        if penalty not in experiment.head.penalties or not temperature > 0:
            raise TensorError(f"tensor '{CHOICE}' is no penalty of head.penalties and a temperature", CHOICE)
        choice: Choice = {"kind": kind, "penalty": penalty, "temperature": temperature}
        return solved_tensors(experiment, exchange, choice, Moments.from_tensors(statistics), weights)


def encrypted(cipher: Cipher, tensors: Tensors, images: int) -> Tensors:
    """Encrypts a site's statistics of a stage.

    Args:
        cipher: the site's, for any tensors.
        tensors: by key.
        images: that are in them, 1 or more.

    Raises:
        UserError: as `Cipher.encrypt` does.
    """
    means: Tensors = {key: np.asarray(value / images) for key, value in tensors.items()}
    return cipher.of(Layout(_specs(tensors))).encrypt(means, images)


def check_own(
    cipher: Cipher, specs_of: Mapping[str, TensorSpec], payload: object, images: int
) -> tuple[Tensors, Tensors, float]:
    """Checks for the egress filter that `payload` are this site's own statistics, encrypted.

    Returns:
        The ciphertexts by key, the statistics that are in them by theirs, and the L2 norm of the statistics.

    Raises:
        TensorError: if it is anything else.
    """
    own = cipher.of(Layout(specs_of))
    ciphertexts, norm = own.check_own(payload, images)
    return ciphertexts, _whole(own.read(payload, images), images), norm * images


def decrypted(cipher: Cipher, experiment: Experiment, exchange: Exchange, payload: Tensors) -> Decrypted:
    """Decrypts the statistics that have come down.

    Raises:
        TensorError: if they are not sums of ciphertexts as the experiment has them.
        UserError: as `Cipher.decrypt_sum` does.
    """
    classes, choice = len(experiment.data.classes), None
    if CHOICE in payload:
        choice = check_tensors({CHOICE: payload[CHOICE]}, {CHOICE: TensorSpec((2,), "float64")})[CHOICE]
    return Decrypted(_plain(cipher, classes, exchange.features, payload), choice)


def decrypted_head(cipher: Cipher, header: EncryptedHeader, made: SolvedHead, payload: Tensors) -> Tensors:
    """The classifier of an encrypted adapter file.

    Args:
        cipher: with the sites' key.
        header: says which tensors are the classifier's.
        made: how it was made.
        payload: the file's statistics.

    Raises:
        TensorError, UserError: as `decrypted` does.
    """
    shapes = {key: header.tensors[key].shape for key in header.head}
    ((classes, width),) = (shape for shape in shapes.values() if len(shape) > 1)
    statistics = _plain(cipher, classes, width, payload)
    counts = statistics.pop(FEDERATION_COUNTS, None)
    weights = None if counts is None else class_weights(counts)
    (head,) = candidates(made["kind"], Moments.from_tensors(statistics), weights, [made["penalty"]])
    head = head.at_temperature(made["temperature"])
    return {key: (head.weight if len(shape) > 1 else head.bias).astype("float32") for key, shape in shapes.items()}


def _plain(cipher: Cipher, classes: int, width: int, payload: Tensors) -> Tensors:
    """The statistics in sums of ciphertexts, under the keys that they come down by without encryption."""
    counts = {COUNTS: TensorSpec((classes,), "float64")}
    found = Tensors()
    for name, specs_of in zip(_SUMMED, (counts, specs(classes, width)), strict=True):
        if not (ciphertexts := _of(payload, name)):
            continue
        layout = Layout(specs_of)
        images = float(layout.check_sum(ciphertexts)[1])
        summed = _whole(cipher.of(layout).decrypt_sum(ciphertexts), images)
        found |= {FEDERATION_COUNTS: summed[COUNTS]} if name == "counts" else summed
    return found


def _whole(means: Tensors, images: float) -> Tensors:
    """The sums over so many images, from the means."""
    sums: Tensors = {key: np.asarray(value * images) for key, value in means.items()}
    counts: Float = np.rint(sums[COUNTS])
    return {**sums, COUNTS: counts + 0.0}  # no negative zero


def _of(payload: Tensors, name: StageName) -> Tensors:
    """The sum of a stage, with `WEIGHT`."""
    prefix = f"{PREFIX}{name}/"
    return {key.removeprefix(prefix): value for key, value in payload.items() if key.startswith(prefix)}


def _specs(tensors: Tensors) -> dict[str, TensorSpec]:
    return {key: TensorSpec(value.shape, str(value.dtype)) for key, value in tensors.items()}
