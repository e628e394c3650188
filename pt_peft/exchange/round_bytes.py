"""How many bytes the payloads of a round have, told before they are made. Imports no torch."""

from dataclasses import dataclass

from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.codecs import Payload
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import payload_bytes


@dataclass(frozen=True)
class RoundBytes:
    """Bytes of one site's payloads in one round, without any framing: exact for tensors, the most for ciphertexts."""

    down: int
    """Bytes that the server sends to the site."""
    up: int
    """Bytes that the site sends to the server."""


def round_bytes(
    exchange: Exchange, codecs: Payload, round_number: int, since: int = 0, encrypted: bool = False
) -> RoundBytes:
    """The bytes of a round.

    Args:
        exchange: what the site exchanges, at its own rank.
        codecs: the section ``payload`` of the experiment.
        round_number: counted from 0.
        since: number of finished rounds whose aggregate the site holds already.
        encrypted: whether the payloads are ciphertexts. Nothing then travels down before the first round.
    """
    up, down = exchange.up(round_number), exchange.down(since, round_number)
    if encrypted:
        most = Layout(up).most_bytes
        return RoundBytes(down=most if round_number else 0, up=most)
    return RoundBytes(down=payload_bytes(codecs.down.specs(down)), up=payload_bytes(codecs.up.specs(up)))
