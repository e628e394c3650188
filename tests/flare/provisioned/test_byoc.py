"""A federation that does not know us: FLARE's own kits, an environment without our packages, all code in the job."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from contextlib import closing

import pytest
import yaml
from lead import Lead, Run, free_port

from benchmark.federation.provisioned import PROJECT, Federation
from helpers import changed
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.job_folder import write_job

pytestmark = pytest.mark.slow
SITES = ("hospital-1", "hospital-2")


def stock_project(folder):
    """Ours with FLARE's builders alone."""
    project = yaml.safe_load(PROJECT.read_text())
    project["builders"] = [one for one in project["builders"] if one["path"] != "pt_peft_flare.kits.KitBuilder"]
    for builder in project["builders"]:
        if builder["path"] == "pt_peft_flare.kits.BackdatedCertBuilder":
            builder["path"] = "nvflare.lighter.impl.cert.CertBuilder"
    path = folder / "stock.yml"
    path.write_text(yaml.safe_dump(project, sort_keys=False))
    return path


def test_a_bundle_brings_its_code(quick, tmp_path):
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    other = tmp_path / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # A path that is named in a .pth file has its packages imported, but not its own .pth files read: ours is one.
    (other / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = tmp_path / "venv" / "bin" / "python"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = "import torch, nvflare, importlib.util; assert not importlib.util.find_spec('pt_peft')"
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path, env=clean)

    sites = {name: Site(threads=1, cache=str(tmp_path / "cache"), limits=Limits(min_train_images=16)) for name in SITES}
    federation = Federation(tmp_path / "federation", sites, free_port(), project=stock_project(tmp_path))
    (tmp_path / "store").mkdir()  # FLARE schedules nothing from one that was not there at the start
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    for name in ("server", *SITES):
        federation.environment[name] = {"PATH": path, "NVFL_JOB_STORE_ROOT": str(tmp_path / "store")}
    with closing(federation):
        federation.start()
        lead = Lead(federation, {}, tmp_path)
        with closing(lead.session):
            federation.wait_for(lead.session)
            patient = changed(quick, name="bundle", federation={"round_timeout_s": 400, "site_timeout_s": 300})
            write_job(patient, tmp_path / "bundle", bundle=True)
            run = Run(lead.session.submit_job(str(tmp_path / "bundle")), lead)
            record = run.finish()
    assert record["status"] == "finished"
    assert all(one["sites"].keys() == {*SITES} for one in record["rounds"])
    for name in SITES:
        ledger = (federation.kit(name) / run.job / "egress.jsonl").read_text().splitlines()
        assert len(ledger) == 6
        assert all("held_back" not in json.loads(line) for line in ledger)
