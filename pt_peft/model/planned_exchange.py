"""What an experiment exchanges: its model's tensors, and what its aggregation and training need besides."""

from dataclasses import replace

import numpy as np

from pt_peft.errors import UserError
from pt_peft.exchange.lora_pairs import RESIDUAL, pairs, rank_axis
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.adapted_model import AdaptedModel

CONTROL = "control/"
"""What stands before the key of a tensor in the key of its control variate."""


def planned_exchange(model: AdaptedModel, experiment: Experiment) -> Exchange:
    """Raises UserError where the method does not fit ``aggregation``, ``federation.lora_ranks`` or
    ``training.control_variates`` or ``encryption``.
    """
    exchange = model.exchange(experiment.federation.rounds)
    rule, method = experiment.aggregation, experiment.method.name
    if rule.refactors and not pairs(exchange.specs):
        raise UserError(
            f"experiment: field 'aggregation.name' is '{rule.name}', which is about the factors A and B of LoRA; method '{method}' "
            "exchanges no such pair."
        )
    made = {key for part in model.parts for key in part.keys if key.endswith(f".{RESIDUAL}")}
    if rule.computes_residual and made - exchange.computed:
        raise UserError(
            f"experiment: field 'method.roles' makes '{min(made - exchange.computed)}' something else than exchanged, but aggregation "
            f"'{rule.name}' needs it at the server and the sites."
        )
    if rule.computes_residual != bool(exchange.computed):
        raise UserError(
            f"experiment: field 'method.options.lora.residual' is {str(bool(exchange.computed)).lower()}, but aggregation "
            f"'{rule.name}' {'needs' if rule.computes_residual else 'has no use for'} it."
        )
    if ranks := experiment.federation.lora_ranks:
        most = min(
            (spec.shape[rank_axis(key)] for key, spec in exchange.specs.items() if rank_axis(key) is not None),
            default=None,
        )
        for site, rank in ranks.items():
            if most is None or rank > most:
                why = f"has tensors of rank {most}" if most else "exchanges no factor of LoRA"
                raise UserError(
                    f"experiment: field 'federation.lora_ranks.{site}' is {rank}, but method '{method}' {why}."
                )
        if any(model.trained[pair.b].any() for pair in pairs(model.trained)):
            raise UserError(
                f"experiment: field 'federation.lora_ranks' is set, but what method '{method}' starts from is the backbone only with "
                "all of its components; empty, or method 'lora', would be right."
            )
    if experiment.encryption and (exchange.rotating or not exchange.specs):
        why = (
            "trains other tensors in each round, which do not add up"
            if exchange.rotating
            else "exchanges nothing, as it is set up"
        )
        raise UserError(f"experiment: field 'encryption' is set, but method '{method}' {why}.")
    if experiment.privacy.client and exchange.rotating:
        raise UserError(
            f"experiment: field 'privacy.client' is set, but method '{method}' trains other tensors in each round, for which its noise "
            "is not made; null would be right."
        )
    if not experiment.training.control_variates:
        return exchange
    if exchange.rotating:
        raise UserError(
            f"experiment: field 'training.control_variates' is true, but method '{method}' trains other tensors in each round."
        )
    variates = {CONTROL + key: exchange.specs[key] for key in exchange.trained(0)}
    return replace(
        exchange,
        specs={**exchange.specs, **variates},
        always=exchange.always | variates.keys(),
        control=frozenset(variates),
    )


def initial_exchanged(exchange: Exchange, state: Tensors) -> Tensors:
    """Everything that travels, before the first round: of `state`, and control variates of zero."""
    tensors = {key: value for key, value in state.items() if key in exchange.specs}
    return tensors | {key: np.zeros(exchange.specs[key].shape, exchange.specs[key].dtype) for key in exchange.control}
