"""Sites' processes of a simulation start on half of the cores, and get all of them."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from pt_peft_flare.cores import take_all_cores
before = sorted(os.sched_getaffinity(0))
take_all_cores()
print(before, sorted(os.sched_getaffinity(0)), sep="|")
"""


@pytest.mark.parametrize("many", [1, 2])
def test_half_and_then_all(many, tmp_path):
    """As the simulator does it: a thread of the server says so, the main thread starts the site."""
    if len(os.sched_getaffinity(0)) < many:
        pytest.skip("this machine has not so many cores")
    server = f"""
import os, subprocess, sys, threading
from pt_peft_flare.cores import leave_cores_to_host
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{many}])
here = []
def thread():
    leave_cores_to_host()
    here.append(sorted(os.sched_getaffinity(0)))
one = threading.Thread(target=thread)
one.start(); one.join()
print(here[0], flush=True)
subprocess.run([sys.executable, "-c", {CODE!r}])
"""
    done = subprocess.run([sys.executable, "-c", server], capture_output=True, text=True, check=True)
    host, site = done.stdout.strip().splitlines()
    started, after = (json.loads(part) for part in site.split("|"))
    assert len(json.loads(host)) == many
    assert after == json.loads(host)
    assert started == after[many // 2 :]
