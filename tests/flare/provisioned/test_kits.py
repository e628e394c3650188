"""What `nvflare provision` makes of deploy/project.yml."""

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from cryptography import x509
from nvflare.lighter.utils import load_private_key_file, sign_folders
from nvflare.tool.deploy.deploy_commands import prepare_deployment

from benchmark.federation.provisioned import LEAD, PROJECT, Federation
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.presets import demo
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.job_request import submitter_of
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
    assert permissions["lead"]["operate"] == "none"


def test_logs_stay_at_the_site(kits):
    client = resources(kits, "hospital-1")
    assert client["allow_log_streaming"] is False
    assert not any("logging" in component["path"] for component in client["components"])


def test_the_server_takes_no_logs(kits):
    """FLARE's receiver writes whatever a site sends to the server's disk."""
    assert not any("logging" in component["path"] for component in resources(kits, "server")["components"])


def test_connections_are_bounded(kits):
    def grpc(name):
        section = json.loads((kits.kit(name) / "local" / "comm_config.json").read_text())["grpc"]
        return dict(section["options"]) | {"max_workers": section["max_workers"]}

    assert {
        key: value for key, value in grpc("server").items() if not key.startswith(("grpc.keepalive", "grpc.http2"))
    } == {
        "grpc.max_send_message_length": 8 << 20,
        "grpc.max_receive_message_length": 8 << 20,
        "grpc.max_allowed_incoming_connections": 1000,
        "grpc.server_handshake_timeout_ms": 10_000,
        "grpc.max_connection_idle_ms": 60_000,
        "grpc.max_concurrent_streams": 4,
        "max_workers": 1000,
    }
    assert grpc("hospital-1")["grpc.max_receive_message_length"] == 8 << 20


def test_what_is_lost_on_the_line_is_soon_sent_again(kits):
    assert resources(kits, "hospital-1")["client"]["communication_timeout"] == 30


@pytest.mark.parametrize("name", ["server", "hospital-1"])
def test_a_dead_line_is_noticed_within_half_a_minute(kits, name):
    options = dict(json.loads((kits.kit(name) / "local" / "comm_config.json").read_text())["grpc"]["options"])
    assert options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"] == 30_000
    assert options["grpc.http2.min_recv_ping_interval_without_data_ms"] < options["grpc.keepalive_time_ms"]


@pytest.mark.parametrize("name", ["server", "hospital-1"])
def test_files_of_processes_from_before_a_power_cut_are_forgotten(kits, name, tmp_path):
    """They stay if they name a process of this kit; not if that is another's, is gone, or is the script itself."""
    script = (kits.kit(name) / "startup" / "sub_start.sh").read_text()
    part = script[script.index("forget() {") : script.index('  if [[ -f "$WORKSPACE/daemon_pid.fl" ]]')]
    alive = subprocess.Popen(["bash", "-c", "sleep 60; :", f"{tmp_path}/startup/sub_start.sh", "-m", str(tmp_path), ""])
    try:
        for pid, left in ((alive.pid, True), (os.getpid(), False), (2**22 + 1, False), ("$$", False), ("", False)):
            lines = [
                f"WORKSPACE={tmp_path} DIR={tmp_path}/startup",
                f'echo {pid} > "$WORKSPACE/daemon_pid.fl"; echo {pid} > "$WORKSPACE/pid.fl"',
                part,
            ]
            done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
            assert not done.stderr
            assert (tmp_path / "daemon_pid.fl").exists() == (tmp_path / "pid.fl").exists() == left
    finally:
        alive.kill()
        alive.wait()


def test_components_that_outlive_jobs(kits):
    paths = {component["id"]: component["path"] for component in resources(kits, "server")["components"]}
    ours = (
        "rejoin",
        "doorkeeper",
        "outcomes",
        "shut_out",
        "interrupted_jobs",
        "refusals",
        "operator_commands",
        "job_manager",
        "process_launcher",
    )
    assert all(paths[name].startswith("pt_peft_flare.parent.") for name in ours)
    at_site = {component["id"]: component["path"] for component in resources(kits, "hospital-1")["components"]}
    assert len(at_site) == len(resources(kits, "hospital-1")["components"])
    assert at_site["process_launcher"] == "pt_peft_flare.parent.restarting_launcher.RestartingJobLauncher"
    assert at_site["resource_manager"] == "pt_peft_flare.parent.job_gpus.JobGpus"
    assert at_site["resource_consumer"] == "pt_peft_flare.parent.job_gpus.OneJobsGpus"


@pytest.mark.parametrize("name", ["server", "hospital-2"])
def test_a_kit_for_containers_is_another_in_its_launcher_alone(name, kits, tmp_path):
    (tmp_path / "docker.yaml").write_text("{ runtime: docker, parent: { docker_image: pt-peft } }")
    arguments = {"kit": kits.kit(name), "config": tmp_path / "docker.yaml", "output": tmp_path / name}
    prepare_deployment(argparse.Namespace(**{key: str(value) for key, value in arguments.items()}))
    before = resources(kits, name)
    after = json.loads((tmp_path / name / "local" / "resources.json.default").read_text())
    old, new = ({one["id"]: one["path"] for one in each.pop("components")} for each in (before, after))
    assert {key for key in old if new.get(key) != old[key]} <= {
        "process_launcher",
        "resource_manager",
        "resource_consumer",
    }
    assert new.keys() - old.keys() == {"docker_launcher"} | ({"resource_manager"} - old.keys())
    assert new["resource_manager"].endswith("PassthroughResourceManager")
    for each in (before, after):
        each.pop("snapshot_persistor", None)  # it has a folder in the container
    assert before == after
    rights = [folder / "local" / "authorization.json.default" for folder in (kits.kit(name), tmp_path / name)]
    assert rights[0].read_text() == rights[1].read_text()


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


def test_who_has_signed_a_job_is_known_at_a_site(kits, tmp_path):
    job = tmp_path / "job"
    write_job(demo("lora")[0], job, installed=True)
    keys, root_ca = kits.kit(LEAD) / "startup", kits.kit("hospital-1") / "startup" / "rootCA.pem"
    said = {"submitter_name": "somebody", "submitter_org": "elsewhere", "submitter_role": "lead"}
    unsigned = {"name": "somebody", "org": "elsewhere", "role": "lead", "signed": False}
    assert submitter_of(said, job / "app", root_ca) == unsigned
    sign_folders(str(job), load_private_key_file(str(keys / "client.key")), str(keys / "client.crt"))
    signed = {"name": LEAD, "org": "consortium", "role": "lead", "signed": True}
    assert submitter_of(said, job / "app", root_ca) == signed
    experiment = job / "app" / "config" / "experiment.json"
    experiment.write_text(experiment.read_text().replace('"rounds": 3', '"rounds": 4'))
    assert submitter_of(said, job / "app", root_ca) == unsigned


@pytest.mark.parametrize(("sites", "settings"), [(3, {"limits": {"min_sites": 3}}), (2, {})])
def test_where_there_are_three_sites_each_asks_for_three(tmp_path, sites, settings):
    project = yaml.safe_load(PROJECT.read_text())
    clients = [one for one in project["participants"] if one["type"] == "client"][:sites]
    others = [one for one in project["participants"] if one["type"] != "client"]
    (tmp_path / "project.yml").write_text(yaml.safe_dump({**project, "participants": [*others, *clients]}))
    command = [str(Path(sys.executable).parent / "nvflare"), "provision", "-p", "project.yml", "-w", "."]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    files = sorted((tmp_path / "pt_peft" / "prod_00").glob("*/local/site.json"))
    assert [json.loads(path.read_text()) for path in files] == [settings] * sites
