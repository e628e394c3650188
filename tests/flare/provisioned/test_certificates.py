"""Who may register: nobody whose certificate is of another root, nor a site that the federation has shut out."""

import socket
import ssl
import time
from pathlib import Path

import pytest
from lead import wait

from benchmark.federation.provisioned import ADMIN, Federation
from helpers import changed
from pt_peft.experiment.site import Site

pytestmark = pytest.mark.slow
PATIENCE_S = 40
"""Within which a site of this federation is back long since."""


def connected(lead) -> set[str]:
    return {client.name for client in lead.session.get_system_info().client_info}


def answers(port: int, certificate: Path, root: Path) -> bool:
    """Whether the server talks to a client with a start-up kit's certificate."""
    context = ssl.create_default_context(cafile=root / "startup" / "rootCA.pem")
    context.load_cert_chain(certificate / "startup" / "client.crt", certificate / "startup" / "client.key")
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("localhost", port), 10)
    try:
        with context.wrap_socket(plain, server_hostname="localhost") as line:
            return bool(line.recv(1))
    except (ssl.SSLError, ConnectionError):
        return False
    finally:
        plain.close()


def test_a_stranger_cannot_register(lead, tmp_path):
    """With a site's name and kit, made by somebody else's root key."""
    port, own = lead.federation.port, lead.federation.kit("hospital-1")
    stranger = Federation(tmp_path, {"hospital-1": Site()}, port)
    assert answers(port, own, own)
    assert not answers(port, stranger.kit("hospital-1"), own)

    lead.federation.kill("hospital-1")
    try:
        wait(lambda: "hospital-1" not in connected(lead), 180, "the site to be missed")
        stranger.start("hospital-1")
        time.sleep(PATIENCE_S)
        assert "hospital-1" not in connected(lead)
    finally:
        stranger.close()
        lead.federation.start("hospital-1")
    lead.federation.wait_for(lead.session, since=time.time())


def test_a_site_that_is_shut_out_cannot_register_and_spoils_no_job(lead, quick):
    admin = lead.federation.session(ADMIN)
    run = lead.submit(changed(quick, name="shut_out"))
    run.wait_for_round(1)
    log = lead.federation.kit("hospital-2") / "log.txt"
    before = len(log.read_text())
    try:
        admin.disable_client("hospital-2")
        assert "hospital-2" not in connected(lead)
        lead.federation.kill("hospital-2")
        lead.federation.start("hospital-2")
        record = run.finish()
        assert record["status"] == "finished"
        assert run.state == "FINISHED:COMPLETED"
        time.sleep(PATIENCE_S)
        assert "hospital-2" not in connected(lead)
        assert "an admin of the federation has shut this site out" in log.read_text()[before:]
    finally:
        admin.enable_client("hospital-2")
        admin.close()
        # Its watchdog has given up.
        lead.federation.kill("hospital-2")
        lead.federation.start("hospital-2")
    lead.federation.wait_for(lead.session, since=time.time())


def test_a_site_that_is_removed_is_back_with_its_next_sign_of_life(lead):
    """By FLARE: ``remove-client`` shuts nobody out."""
    admin = lead.federation.session(ADMIN)
    try:
        admin.remove_client("hospital-1")
        assert "hospital-1" not in connected(lead)
        wait(lambda: "hospital-1" in connected(lead), PATIENCE_S, "the site")
    finally:
        admin.close()
