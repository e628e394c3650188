"""Processes of one machine hold one copy of a frozen backbone."""

import json
import subprocess
import sys

import pytest

from benchmark.measurements.shared_weights import main
from helpers import ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PSS is Linux's")
@pytest.mark.slow
def test_three_processes_hold_the_weights_once(tmp_path):
    # In a process of its own: forks of this one would share, or not, what other tests left in memory.
    command = [
        sys.executable,
        "-m",
        "benchmark.measurements.shared_weights",
        "--processes",
        "3",
        "--out",
        str(tmp_path / "m.json"),
    ]
    command += ["--backbone", "vit_small_patch16_224", "--image-size", "32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "m.json").read_text())
    weights, sums = found["weights_bytes"], found["sum_bytes"]
    assert weights > 80e6
    # Whatever a process takes for itself it takes in either case; of three copies two are saved.
    assert sums["copied"]["Pss"] - sums["mapped"]["Pss"] > 1.8 * weights
    assert sums["copied"]["Private_Dirty"] - sums["mapped"]["Private_Dirty"] > 2.8 * weights
    assert "mapped" in done.stdout
    assert found["provenance"]["versions"]["torch"]


def test_what_is_refused(tmp_path, capsys):
    assert main(["--processes", "0", "--out", str(tmp_path / "m.json")]) == 1
    assert "--processes: 0" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "none" / "m.json")]) == 1
    assert "is not a folder" in capsys.readouterr().err
