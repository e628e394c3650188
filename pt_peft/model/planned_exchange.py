"""What an experiment exchanges: its model's tensors, and what its aggregation and training need besides."""

from dataclasses import replace

import numpy as np

from pt_peft.errors import UserError
from pt_peft.exchange.lora_pairs import RESIDUAL, pairs
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.rules import MODEL_RULES, Planned, broken
from pt_peft.model.adapted_model import AdaptedModel

CONTROL = "control/"
"""Prefix of a control variate's key, before the key of its tensor."""


def planned_exchange(model: AdaptedModel, experiment: Experiment) -> Exchange:
    """Plans which tensors travel in which round.

    Raises:
        UserError: if the experiment breaks one of `pt_peft.experiment.rules.MODEL_RULES` with this model.
    """
    exchange = model.exchange(experiment.federation.rounds)
    planned = Planned(
        experiment,
        exchange,
        residuals=frozenset(key for part in model.parts for key in part.keys if key.endswith(f".{RESIDUAL}")),
        starts_from_all_components=any(bool(model.trained[pair.b].any()) for pair in pairs(model.trained)),
    )
    if rule := broken(MODEL_RULES, planned):
        raise UserError(f"experiment: {rule.message(planned)}.", rule.field)
    return with_control_variates(exchange, experiment)


def with_control_variates(exchange: Exchange, experiment: Experiment) -> Exchange:
    """Adds SCAFFOLD's control variates to a model's exchange, if the experiment trains with them."""
    if not experiment.training.control_variates:
        return exchange
    variates = {CONTROL + key: exchange.specs[key] for key in exchange.trained(0)}
    return replace(
        exchange,
        specs={**exchange.specs, **variates},
        always=exchange.always | variates.keys(),
        control=frozenset(variates),
    )


def initial_exchanged(experiment: Experiment, exchange: Exchange, state: Tensors) -> Tensors:
    """Everything that travels, before the first round.

    Args:
        experiment: with ``head.start`` ``zeros`` the classifier is zero, whatever it is in `state`.
        exchange: the experiment's.
        state: of the model, by canonical key. Control variates, which it does not have, are zero.
    """
    tensors = {key: value for key, value in state.items() if key in exchange.specs}
    zero = exchange.control | (exchange.head if experiment.head.start == "zeros" else frozenset[str]())
    return tensors | {key: np.zeros(exchange.specs[key].shape, exchange.specs[key].dtype) for key in zero}
