"""Who may register: nobody whose certificate is of another root, nor a site that the federation has shut out."""

import time

import pytest
from conftest import wait

from benchmark.federation import ADMIN, Federation
from pt_peft.site import Site

pytestmark = pytest.mark.slow
PATIENCE_S = 40
"""Within which a site of this federation is back long since."""


def connected(lead) -> set[str]:
    return {client.name for client in lead.session.get_system_info().client_info}


def test_a_stranger_cannot_register(lead, tmp_path):
    """With a site's name and kit, made by somebody else's root key."""
    lead.federation.kill("hospital-1")
    stranger = Federation(tmp_path, {"hospital-1": Site()}, lead.federation.port)
    try:
        wait(lambda: "hospital-1" not in connected(lead), 180, "the site to be missed")
        stranger.start("hospital-1")
        log = stranger.kit("hospital-1") / "log.txt"
        wait(lambda: log.exists() and "CERTIFICATE_VERIFY_FAILED" in log.read_text(), 120, "the stranger to be refused")
        assert "hospital-1" not in connected(lead)
    finally:
        stranger.close()
        lead.federation.start("hospital-1")
    lead.federation.wait_for(lead.session, since=time.time())


def test_a_site_that_was_shut_out_cannot_register(lead):
    admin = lead.federation.session(ADMIN)
    try:
        admin.disable_client("hospital-2")
        assert "hospital-2" not in connected(lead)
        lead.federation.kill("hospital-2")
        lead.federation.start("hospital-2")
        time.sleep(PATIENCE_S)
        assert "hospital-2" not in connected(lead)
    finally:
        admin.enable_client("hospital-2")
        admin.close()
    lead.federation.wait_for(lead.session, since=time.time())
