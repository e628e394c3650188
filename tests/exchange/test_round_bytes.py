"""The bytes of a round, told before it, are those of the payloads that travel."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from pt_peft.exchange.ciphertext_layout import MOST_BYTES, SLOTS
from pt_peft.exchange.codecs import Payload
from pt_peft.exchange.round_bytes import RoundBytes, round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorSpec, payload_bytes

SPECS = {key: TensorSpec((4, size), "float32") for key, size in (("a", 3), ("b", 5), ("c", 7), ("d", 11))}
EXCHANGE = Exchange(
    SPECS, always=frozenset("ab"), rotating=(frozenset("c"), frozenset("d"), frozenset()), computed=frozenset("b")
)


@pytest.mark.parametrize("section", [{}, {"up": {"name": "int8"}, "down": {"name": "float16"}}])
@pytest.mark.parametrize(("round_number", "since"), [(0, 0), (1, 0), (2, 0), (2, 1)])
def test_of_tensors(section, round_number, since):
    codecs = TypeAdapter(Payload).validate_python(section)

    def written(codec, specs):
        return payload_bytes(codec.encode({key: np.ones(spec.shape, np.float32) for key, spec in specs.items()}))

    assert round_bytes(EXCHANGE, codecs, round_number, since) == RoundBytes(
        down=written(codecs.down, EXCHANGE.down(since, round_number)),
        up=written(codecs.up, EXCHANGE.up(round_number)),
    )


def test_of_ciphertexts():
    exchange = Exchange({"a": TensorSpec((SLOTS + 1,), "float32")}, always=frozenset("a"))
    assert round_bytes(exchange, Payload(), 0, encrypted=True) == RoundBytes(down=0, up=2 * MOST_BYTES)
    assert round_bytes(exchange, Payload(), 1, encrypted=True) == RoundBytes(down=2 * MOST_BYTES, up=2 * MOST_BYTES)
