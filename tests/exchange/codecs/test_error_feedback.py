"""What a site keeps of what it could not send. Without torch."""

import numpy as np
import pytest

from helpers import changed
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorSpec
from pt_peft.experiment.experiment import Experiment
from pt_peft.federation import transfer
from pt_peft.presets import demo

A, B, HEAD = "blocks.0.attn.qkv.lora_A", "blocks.0.attn.qkv.lora_B", "head.weight"
SHAPES = {A: (4, 20), B: (30, 4), HEAD: (3, 8), "scale": ()}
SPECS = {key: TensorSpec(shape, "float32") for key, shape in SHAPES.items()}
ROUNDS = 60


def with_payload(**sections) -> Experiment:
    return changed(demo("lora")[0], payload=sections)


def changes(number):
    random = np.random.default_rng(number)
    return {key: np.asarray(random.normal(scale=0.01, size=shape), np.float32) for key, shape in SHAPES.items()}


def told(experiment, rounds=ROUNDS, tensors=changes):
    """The sums of what a site meant and of what was read, and the greatest change of a round."""
    meant, read, kept = {}, {}, {}
    for number in range(rounds):
        made = tensors(number)
        payload, kept = transfer.encode_up(experiment, "site-1", number, made, kept)
        for key, value in experiment.payload.up.decode(payload, {key: SPECS[key] for key in made}).items():
            meant[key] = meant.get(key, 0) + made[key].astype(np.float64)
            read[key] = read.get(key, 0) + value.astype(np.float64)
    return meant, read, kept


@pytest.mark.parametrize("up", [{"name": "int8"}, {"name": "top_k", "fraction": 0.1}], ids=lambda up: up["name"])
def test_nothing_is_lost_but_what_is_kept(up):
    """After any number of rounds what was read, and what is kept, is what was meant."""
    meant, read, kept = told(with_payload(up=up))
    without, worse, nothing = told(with_payload(up={**up, "error_feedback": False}))
    assert not nothing
    assert {key.removeprefix("unsent/") for key in kept} == SHAPES.keys()
    for key in SHAPES:
        np.testing.assert_allclose(read[key] + kept[f"unsent/{key}"], meant[key], atol=1e-6)
        if SHAPES[key]:  # a single value is written without loss
            assert np.abs(read[key] - meant[key]).mean() < 0.7 * np.abs(worse[key] - without[key]).mean()


def test_what_is_kept_stays_within_bounds():
    """int8 loses one step of the last round, however long the run; its share of the sum goes to zero."""
    for rounds in (5, 50, 200):
        meant, read, _ = told(with_payload(up={"name": "int8"}), rounds, lambda number: changes(0))
        for key in SHAPES:
            step = 2 * np.abs(changes(0)[key]).max() / 127
            assert np.abs(read[key] - meant[key]).max() <= step
            assert np.abs(read[key] / rounds - changes(0)[key]).max() <= step / rounds


def test_tensors_that_take_turns_keep_what_is_theirs():
    def turns(number):
        return {
            key: value for index, (key, value) in enumerate(changes(number).items()) if index == number % len(SHAPES)
        }

    meant, read, kept = told(with_payload(up={"name": "top_k", "fraction": 0.2}), tensors=turns)
    for key in SHAPES:
        np.testing.assert_allclose(read[key] + kept[f"unsent/{key}"], meant[key], atol=1e-6)


def test_each_round_and_site_rounds_by_draws_of_its_own():
    experiment = with_payload(up={"name": "int8"})
    made = changes(0)
    one, _ = transfer.encode_up(experiment, "site-1", 0, made, {})
    again, _ = transfer.encode_up(experiment, "site-1", 0, made, {})
    assert all(np.array_equal(one[key], again[key]) for key in one)
    for site, number in (("site-2", 0), ("site-1", 1)):
        other, _ = transfer.encode_up(experiment, site, number, made, {})
        assert any(not np.array_equal(one[key], other[key]) for key in SHAPES)


def test_a_site_of_smaller_rank_sends_and_keeps_no_more_than_its_components():
    experiment = changed(
        with_payload(up={"name": "int8"}, down={"name": "int8"}), federation={"lora_ranks": {"site-1": 1}}
    )
    made = changes(0)
    made[A][1:], made[B][:, 1:] = 0, 0
    payload, kept = transfer.encode_up(experiment, "site-1", 0, made, {})
    assert payload[A].shape == (1, 20)
    assert payload[f"{B}/scale"].shape == (1,)
    assert kept[f"unsent/{B}"].shape == (30, 1)
    exchange = Exchange(SPECS, frozenset(SPECS))
    got = transfer.decode_down(experiment, exchange, "site-1", payload, 0, 0)
    assert all(got[key].shape == SHAPES[key] for key in SHAPES)
    assert not got[A][1:].any()
    assert got[A][0].any()


def test_what_components_made_anew_cannot_keep():
    fields = {"aggregation": {"name": "lora_product"}, "payload": {"up": {"name": "int8"}}}
    with pytest.raises(
        ValueError, match=r"'payload.up.error_feedback' must be false with aggregation.name 'lora_product'"
    ):
        changed(demo("lora")[0], **fields)
    fields["payload"]["up"]["error_feedback"] = False
    assert changed(demo("lora")[0], **fields).payload.up.remembers is False
