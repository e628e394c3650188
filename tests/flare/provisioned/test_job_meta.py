# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportMissingTypeStubs=false
"""What a lead writes in meta.json, by FLARE's own commands, store and deployer on a folder of this test's."""

import json
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey, SystemComponents
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.workspace import Workspace
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.utils.zip_utils import zip_directory_to_file
from nvflare.private.fed.server.job_cmds import JobCommandModule
from nvflare.private.fed.server.job_runner import JobRunner
from nvflare.private.fed.server.server_engine import ServerEngine
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.privacy_manager import PrivacyService

from pt_peft.presets import demo
from pt_peft_flare.job_folder import write_job
from pt_peft_flare.parent.job_manager import JobManager
from pt_peft_flare.parent.job_meta import JobMeta
from pt_peft_flare.parent.site_jobs import SiteJobs

OTHER = str(uuid.uuid4())


class Engine(ServerEngine):
    """The parent process of a server, without its network."""

    def __init__(self, root: Path):
        self.root = root
        self.manager = self.job_def_manager = JobManager(uri_root=str(root / "jobs"))
        self.parts = {"job_store": FilesystemStorage(), SystemComponents.JOB_MANAGER: self.manager}
        self.contexts = FLContextManager(self, "server", "", {}, {})

    def __del__(self):
        pass

    @contextmanager
    def new_context(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        yield self.contexts.new_context()

    def get_component(self, component_id):
        return self.parts[component_id]

    def fire_event(self, event_type, fl_ctx):
        self.manager.handle_event(event_type, fl_ctx)

    def get_clients(self):
        return []


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.delenv("NVFL_JOB_STORE_ROOT", raising=False)
    monkeypatch.setattr(AppAuthzService, "app_validator", None)
    monkeypatch.setattr(PrivacyService, "is_scope_allowed", lambda scope: True)
    root = tmp_path / "server"
    for name, content in (("startup", "key"), ("local", "{}"), ("checkpoints", "tensors"), ("transfer", "files")):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text(content)
    return Engine(root)


def conn(engine, **more) -> Any:
    """A lead's connection to the server's console, which keeps what it is told."""
    said = SimpleNamespace(errors=[], strings=[])
    props = {ConnProps.USER_NAME: "lead@x.example", ConnProps.USER_ORG: "x", ConnProps.USER_ROLE: "lead", **more}
    return SimpleNamespace(
        said=said,
        app_ctx=engine,
        get_prop=lambda name, default=None: props.get(name, default),
        append_error=lambda text, meta=None: said.errors.append(text),
        append_string=lambda text, meta=None: said.strings.append(text),
        append_success=lambda text, meta=None: None,
    )


def submit(engine, tmp_path, meta: dict[str, Any] | None = None, *options: str) -> Any:
    """Submits a job with more, or other, in its meta.json."""
    folder = tmp_path / "lead" / "lora"
    write_job(demo("lora")[0], folder, installed=True)
    file = folder / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (meta or {})))
    zip_directory_to_file(str(folder.parent), "lora", str(tmp_path / "lora.zip"))
    connection = conn(engine, **{ConnProps.FILE_LOCATION: str(tmp_path / "lora.zip")})
    JobCommandModule().submit_job(connection, ["submit_job", "lora", *options])
    return connection.said


def jobs(engine):
    with engine.new_context() as fl_ctx:
        return engine.manager.get_all_jobs(fl_ctx)


def deploy(engine, job):
    """Deploys a job at the server, as FLARE's parent process does. Returns the context."""
    with engine.new_context() as fl_ctx:
        JobRunner(str(engine.root))._deploy_job(job, {}, fl_ctx)


def kept(root):
    return {path.relative_to(root): path.read_text() for path in root.glob("*/file")}


LEADS = set(JobMeta.model_fields)
SERVERS = sorted({key.value for key in JobMetaKey} - LEADS - {"study"})  # FLARE puts its own study there


@pytest.mark.parametrize("key", SERVERS)
def test_no_key_of_the_servers_is_taken_from_a_lead(key, engine, tmp_path):
    said = [submit(engine, tmp_path, {key: value}).errors for value in ("startup", OTHER, 5, ["a"], {"a": {}})]
    assert [len(errors) for errors in said] == [1, 1, 1, 1, 1]
    # FLARE itself refuses some values of some keys.
    assert said.count([f"meta.json: field '{key}' is not a lead's to set; leave it out."]) >= 1
    assert not jobs(engine)


@pytest.mark.parametrize(
    ("meta", "problem"),
    [
        ({"reason": "finished well"}, "field 'reason' is unknown"),
        ({"edge": 1}, "field 'edge' is unknown"),
        ({"min_clients": "2"}, "field 'min_clients' is \"2\""),
        ({"min_clients": None}, "field 'min_clients' is null"),
        ({"mandatory_clients": "ab"}, "field 'mandatory_clients' is \"ab\""),
        ({"name": 5}, "field 'name' is 5"),
        ({"name": "a\u001b[2J"}, "a name of printable characters would be right"),
        ({"name": "a" * 201}, "at most 200 characters"),
        ({"resource_spec": {"a": {"process": "x"}}}, "field 'resource_spec.a.process' is unknown"),
        ({"resource_spec": {"a": {"num_of_gpus": -1}}}, "num_of_gpus"),
        ({"resource_spec": {"a": {"num_of_cpus": 0}}}, "num_of_cpus"),
        ({"resource_spec": {"a": {"memory": "8 GB"}}}, "memory"),
        ({"scope": ["a"]}, "field 'scope' is [\"a\"]"),
        ({"deploy_map": {"app": ["@ALL"], "other": 1}}, "participants must be list/str/dict"),
    ],
)
def test_values_at_which_flare_would_stop_for_all(meta, problem, engine, tmp_path):
    """A string for a number ends each of the scheduler's turns, for all jobs."""
    said = submit(engine, tmp_path, meta)
    assert len(said.errors) == 1
    assert problem in said.errors[0]
    assert not jobs(engine)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"mandatory_clients": ["hospital-1"], "resource_spec": {"hospital-1": {"num_of_gpus": 1}}, "scope": "private"},
        {"deploy_map": {"app": {"sites": ["server", "hospital-1", "hospital-2"]}}},
        {"deploy_map": {"app": [{"targets": ["server", "hospital-1"]}, "hospital-2"]}},
        {"deploy_map": {"app": "@ALL"}},
        {"resource_spec": {"@default": {"num_of_gpus": 1, "num_of_cpus": 8, "memory": "16Gi"}}},
    ],
)
@pytest.mark.parametrize("options", [(), ("--submit-token", "once")])
def test_what_is_a_leads_is_taken(meta, options, engine, tmp_path):
    assert submit(engine, tmp_path, meta, *options).errors == []
    (job,) = jobs(engine)
    assert uuid.UUID(job.job_id).version == 4
    assert (job.meta["name"], job.meta["submitter_name"]) == ("lora", "lead@x.example")


def test_a_clone_is_a_clone_and_can_be_cloned_also_when_the_first_has_gone(engine, tmp_path):
    submit(engine, tmp_path)
    (first,) = jobs(engine)
    deploy(engine, first)
    earlier = first
    for _ in range(2):
        connection = conn(engine, **{JobCommandModule.JOB: earlier, JobCommandModule.JOB_ID: earlier.job_id})
        JobCommandModule().clone_job(connection, ["clone_job", earlier.job_id])
        assert connection.said.errors == []
        with engine.new_context() as fl_ctx:
            engine.manager.delete(earlier.job_id, fl_ctx)
        (clone,) = jobs(engine)
        assert clone.meta["cloned_from"] == earlier.job_id
        deploy(engine, clone)
        assert (engine.root / clone.job_id / "app_server" / "config" / "experiment.json").exists()
        earlier = clone


def store(engine, tmp_path, meta):
    """A job in FLARE's store with fields that a lead can no longer give it, from before this was so."""
    submit(engine, tmp_path)
    (job,) = jobs(engine)
    with engine.new_context() as fl_ctx:
        content = engine.manager.get_content(job.meta, fl_ctx)
        engine.manager.delete(job.job_id, fl_ctx)
        engine.manager.create({**job.meta, **meta}, content, fl_ctx)
    (job,) = jobs(engine)
    return job


UNFIT = [
    ({"job_id": "startup"}, "'startup' is not an id"),
    ({"job_id": "local"}, "'local' is not an id"),
    ({"job_id": "simulate_job"}, "'simulate_job' is not an id"),
    ({"cloned_from": "../startup"}, "was cloned from '../startup'"),
    ({"cloned_from": 5}, "was cloned from '5'"),
]


@pytest.mark.parametrize(("meta", "problem"), UNFIT)
def test_the_servers_own_folders_outlive_any_job(meta, problem, engine, tmp_path):
    job, before = store(engine, tmp_path, meta), kept(engine.root)
    with pytest.raises(ValueError, match=r"submit the job again|which is not the id of a job"):
        deploy(engine, job)
    assert kept(engine.root) == before
    assert len(before) == 4
    (job,) = jobs(engine)
    assert problem in job.meta["reason"]


def test_flares_own_deployer_would_erase_them(engine, tmp_path, monkeypatch):
    """Else `JobManager.get_app` would not be needed."""
    monkeypatch.setattr("pt_peft_flare.parent.job_manager.problem_of_stored", lambda job_id, meta: None)
    deploy(engine, store(engine, tmp_path, {"job_id": "startup"}))
    assert not (engine.root / "startup" / "file").exists()


@pytest.mark.parametrize(("meta", "problem"), [*UNFIT, ({"job_id": OTHER}, "is not an id that FLARE has given")])
def test_a_sites_own_folders_outlive_any_job(meta, problem, engine, tmp_path):
    job = store(engine, tmp_path, {})
    with engine.new_context() as fl_ctx:
        app = engine.manager.get_app(job, "app", fl_ctx)
        site = tmp_path / "hospital-1"
        shutil.copytree(engine.root, site, ignore=shutil.ignore_patterns("jobs"))
        workspace, before = Workspace(str(site), site_name="hospital-1"), sorted(site.rglob("*"))
        folder = job.job_id if meta.get("job_id") == OTHER else meta.get("job_id", job.job_id)
        assert problem in SiteJobs().deploy(workspace, folder, {**job.meta, **meta}, "app", app, fl_ctx)
        assert sorted(site.rglob("*")) == before
        assert not SiteJobs().deploy(workspace, job.job_id, job.meta, "app", app, fl_ctx)
        assert (site / job.job_id / "meta.json").exists()
        assert fl_ctx.get_prop(FLContextKey.JOB_BLOCK_REASON) is None
