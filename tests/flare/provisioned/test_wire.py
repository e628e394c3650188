"""What a site's ledger says against what was on its line."""

import json
import time

import pytest

from helpers import changed

pytestmark = pytest.mark.slow
SITE = "hospital-2"


def sent_by(lead, experiment) -> tuple[int, int, float]:
    """Runs a job. Returns SITE's bytes of tensors in its ledger, all its bytes on its line, and seconds."""
    line, started = lead.links[SITE], time.monotonic()
    before = line.bytes_up
    run = lead.submit(experiment)
    assert run.finish()["status"] == "finished"
    ledger = (lead.federation.kit(SITE) / run.job / "egress.jsonl").read_text().splitlines()
    return (
        sum(json.loads(entry).get("tensor_bytes", 0) for entry in ledger),
        line.bytes_up - before,
        time.monotonic() - started,
    )


def test_the_ledger_sums_to_what_was_on_the_wire(lead, quick, record_property):
    line = lead.links[SITE]
    idle, started = line.bytes_up, time.monotonic()
    time.sleep(20)
    idle_rate = (line.bytes_up - idle) / (time.monotonic() - started)
    small = sent_by(lead, changed(quick, name="small"))
    large = sent_by(
        lead, changed(quick, name="large", method={"name": "full", "options": {}}, federation={"rounds": 6})
    )
    protocol = small[1] - small[0]
    record_property(
        "idle bytes a second, (ledger, wire, seconds) of a small and a large job", [idle_rate, small, large]
    )
    print("\nidle", round(idle_rate), "bytes/s; small", small, "large", large)
    for ledger, wire, seconds in (small, large):
        assert ledger <= wire
        # The rest is asking for work, heartbeats and headers: it grows with time, not with what is sent.
        assert wire <= 1.02 * ledger + 2 * protocol * seconds / small[2]
    # Nothing as large as the images of one batch is hidden in it.
    assert large[1] - large[0] < large[0] / 4
