"""What `nvflare provision` makes of deploy/project.yml."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from cryptography import x509

from benchmark.federation.provisioned import Federation
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.kits import KitBuilder


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    site = Site(threads=1, limits=Limits(methods=("lora",)))
    return Federation(tmp_path_factory.mktemp("kits"), {"hospital-1": site, "hospital-2": Site()}, 18999)


def resources(kits, name):
    return json.loads((kits.kit(name) / "local" / "resources.json.default").read_text())


def test_a_job_can_have_nothing_built_but_our_components(kits):
    assert resources(kits, "hospital-1")["class_allow_list"] == [
        "pt_peft_flare.learner.PeftLearner",
        "pt_peft_flare.filters.EgressFilter",
    ]
    assert "pt_peft_flare.controller.PeftFedAvg" in resources(kits, "server")["class_allow_list"]
    for name in ("server", "hospital-1"):
        assert resources(kits, name)["class_list_enforcement_mode"] == "enforce"


@pytest.mark.parametrize("name", ["server", "hospital-2"])
def test_nobody_may_bring_code_or_read_files(kits, name):
    permissions = json.loads((kits.kit(name) / "local" / "authorization.json.default").read_text())["permissions"]
    assert all(role["byoc"] == role["shell_commands"] == "none" for role in permissions.values())
    assert permissions["lead"]["submit_job"] == "any"
    assert permissions["project_admin"]["operate"] == "any"


def test_logs_stay_at_the_site(kits):
    client = resources(kits, "hospital-1")
    assert client["allow_log_streaming"] is False
    assert not any("logging" in component["path"] for component in client["components"])


def test_what_is_lost_on_the_line_is_soon_sent_again(kits):
    assert resources(kits, "hospital-1")["client"]["communication_timeout"] == 30


def test_components_that_outlive_jobs(kits):
    paths = {component["id"]: component["path"] for component in resources(kits, "server")["components"]}
    assert {"rejoin", "outcomes", "shut_out", "interrupted_jobs", "job_manager", "process_launcher"} <= paths.keys()
    launchers = [one["path"] for one in resources(kits, "hospital-1")["components"] if one["id"] == "process_launcher"]
    assert launchers == ["pt_peft_flare.parent.restarting_launcher.RestartingJobLauncher"]


def test_jobs_are_kept_in_the_servers_workspace(kits):
    script = (kits.kit("server") / "startup" / "sub_start.sh").read_text()
    assert 'NVFL_JOB_STORE_ROOT="${NVFL_JOB_STORE_ROOT:-$WORKSPACE/jobs}"' in script


def test_each_site_has_its_own_site_json(kits):
    assert Site.read(kits.kit("hospital-1") / "local" / "site.json").limits.methods == ("lora",)
    assert Site.read(kits.kit("hospital-2") / "local" / "site.json") == Site()


@pytest.mark.parametrize("file", ["rootCA.pem", "client.crt"])
def test_a_clock_that_is_behind_takes_the_certificates_for_valid(kits, file):
    certificate = x509.load_pem_x509_certificate((kits.kit("hospital-1") / "startup" / file).read_bytes())
    now = datetime.now(UTC)
    assert certificate.not_valid_before_utc < now - timedelta(hours=23) < now < certificate.not_valid_after_utc


def test_whether_code_may_come_is_no_word():
    with pytest.raises(ValueError, match="'byoc' of KitBuilder is 'no'; true or false would be right"):
        KitBuilder(byoc=cast(Any, "no"))
