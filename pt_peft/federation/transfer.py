"""A site's ends of the way: what it makes of what it is sent, and what it sends. Imports no torch."""

from collections.abc import Mapping

import numpy as np

from pt_peft.exchange import lora_pairs
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors, TensorSpec
from pt_peft.experiment.experiment import Experiment
from pt_peft.seeds import derive_seed

_UNSENT = "unsent/"
"""What stands before the keys of what a codec has lost, in what a site keeps."""


def received(
    experiment: Experiment, exchange: Exchange, site: str, payload: object, since: int, round_number: int
) -> Tensors:
    """The tensors of a payload to a site that holds the aggregate of `since` finished rounds, at the experiment's rank.

    Args:
        exchange: the experiment's.

    Raises:
        TensorError: if `payload` is not what it should be.
    """
    specs = exchange.at_rank(experiment.federation.lora_ranks.get(site)).down(since, round_number)
    return lora_pairs.padded(experiment.payload.down.decode(payload, specs), exchange.specs)


def sent(
    experiment: Experiment, site: str, round_number: int, tensors: Tensors, kept: Tensors
) -> tuple[Tensors, Tensors]:
    """What a site sends, and what it keeps of that for its next round.

    Args:
        tensors: what a round has made, at the experiment's rank: changes if ``payload.changes`` says so.
        kept: of the site's last round, see `pt_peft.federation.local_round`.

    Raises:
        TensorError: if a tensor is not finite, and the codec would hide that.
        UserError: if a codec cannot write a value.
    """
    codec = experiment.payload.up
    tensors = lora_pairs.sliced(tensors, experiment.federation.lora_ranks.get(site))
    if not codec.remembers:
        return codec.encode(tensors, _draw(experiment, site, round_number)), {}
    unsent = {key.removeprefix(_UNSENT): value for key, value in kept.items() if key.startswith(_UNSENT)}
    # As arrays: numpy makes plain numbers of sums of tensors without axes.
    meant = {key: np.asarray(value + unsent[key]) if key in unsent else value for key, value in tensors.items()}
    encoded = codec.encode(meant, _draw(experiment, site, round_number))
    told = codec.decode(encoded, _specs(meant))
    unsent |= {key: np.asarray(value - told[key]) for key, value in meant.items()}
    return encoded, {_UNSENT + key: value for key, value in unsent.items()}


def _draw(experiment: Experiment, site: str, round_number: int):
    return lambda key: np.random.default_rng(derive_seed(experiment.seed, "rounding", site, round_number, key))


def _specs(tensors: Mapping[str, np.ndarray]) -> dict[str, TensorSpec]:
    return {key: TensorSpec(value.shape, str(value.dtype)) for key, value in tensors.items()}
