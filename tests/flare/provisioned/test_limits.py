"""A site's limits: what is outside is refused with a reason that may leave the site."""

import pytest

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorSpec
from pt_peft.experiment.limits import Limits
from pt_peft.presets import demo


@pytest.mark.parametrize(
    ("limits", "method", "message"),
    [
        (Limits(methods=("lora", "norm")), "lora+norm", None),
        (Limits(methods=("lora", "norm")), "lora_vpt", "asks for method lora_vpt; allowed: lora, norm"),
        (Limits(methods=("lora",)), "lora+norm", "asks for method norm; allowed: lora"),
        (Limits(methods=()), "lora", "allowed: none"),
        (Limits(backbones=("0" * 64,)), "lora", "which the site does not know"),
        (Limits(backbones=(demo("lora")[0].backbone.sha256,)), "lora", None),
        (Limits(max_epsilon=8), "lora", "without differential privacy; epsilon at most 8 is asked for"),
    ],
)
def test_experiments(limits, method, message):
    experiment = demo(method)[0]
    if message is None:
        limits.check(experiment)
        return
    with pytest.raises(UserError) as refusal:
        limits.check(experiment)
    assert message in str(refusal.value)


def test_bytes_a_round():
    experiment = demo("lora")[0]
    specs = {"a": TensorSpec((10,), "float32"), "b": TensorSpec((90,), "float32")}
    exchange = Exchange(specs, frozenset({"a"}), (frozenset(), frozenset({"b"})))
    limits = Limits(bytes_per_round=399)
    limits.check_bytes(experiment, exchange, 0)
    with pytest.raises(UserError, match="'bytes_per_round' of its limits: it asks for 400 bytes a round; allowed: 399"):
        limits.check_bytes(experiment, exchange, 1)
    limits.check_bytes(changed(experiment, payload={"up": {"name": "float16"}}), exchange, 1)
    with pytest.raises(UserError, match="it asks for 400 bytes"):
        limits.check_nbytes(400)
