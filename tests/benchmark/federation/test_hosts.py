"""A federation on hosts of their own, under faults; each `make hosts` measures is tried there, some of them here."""

import json

import pytest

from benchmark.__main__ import main
from benchmark.federation.faults import FAULTS, SITES


def measured(out, name) -> dict:
    assert main(["hosts", "--only", name, "--out", str(out)]) == 0
    return json.loads(out.read_text())[name]


@pytest.mark.slow
def test_a_line_that_is_cut_for_five_seconds_costs_no_result(own_network_command, tmp_path):
    found = measured(tmp_path / "hosts.json", "cut_5")
    assert found["missed"] is None
    assert found["lost"] == 0
    assert found["fault_s"] >= 5
    assert found["provenance"]["machine"]["cores"] > 0


@pytest.mark.slow
def test_a_server_that_moves_is_found_again(own_network_command, tmp_path):
    found = measured(tmp_path / "hosts.json", "server_moves")
    assert found["missed"] is None
    assert found["took_part"][-1] == len(SITES)


@pytest.mark.slow
def test_a_result_file_keeps_what_was_measured_before(own_network_command, tmp_path):
    out = tmp_path / "hosts.json"
    out.write_text(json.dumps({"disk_full": {"lost": 1}}))
    measured(out, "baseline")
    assert json.loads(out.read_text())["disk_full"] == {"lost": 1}


def test_an_unknown_fault_is_refused(tmp_path, capsys):
    assert main(["hosts", "--only", "earthquake", "--out", str(tmp_path / "hosts.json")]) == 1
    said = capsys.readouterr().err
    assert "there is no fault earthquake" in said
    assert all(name in said for name in FAULTS)
