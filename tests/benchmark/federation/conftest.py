"""Hosts of their own, where this machine can make them."""

import pytest

from benchmark.federation.network import own_network
from pt_peft.errors import UserError


@pytest.fixture(scope="session")
def own_network_command() -> list[str]:
    """The command before a program that brings it into a network of its own."""
    try:
        return own_network()
    except UserError as error:
        pytest.skip(str(error))
