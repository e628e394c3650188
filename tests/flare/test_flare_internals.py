"""What happens when FLARE has no more, or has changed, a name of its own that we use."""

import importlib
import importlib.metadata
import logging
import subprocess
import sys
import tomllib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.signal import Signal
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.private.fed.app.simulator import simulator_runner
from nvflare.private.fed.client import client_runner
from nvflare.widgets.fed_event import ClientFedEventRunner

from helpers import ROOT, simulated
from pt_peft_flare import flare_internals as internals
from pt_peft_flare import kits, short_waits
from pt_peft_flare.controller import PeftFedAvg
from pt_peft_flare.flare_internals import KNOWN, USES, FlareChanged, Use
from pt_peft_flare.job_request import submitter_of
from pt_peft_flare.parent.interrupted_jobs import InterruptedJobs
from pt_peft_flare.parent.job_manager import JobManager
from pt_peft_flare.parent.operator_commands import OperatorCommands
from pt_peft_flare.parent.outcomes import Outcomes
from pt_peft_flare.parent.rejoin import Rejoin
from pt_peft_flare.parent.restarting_launcher import RestartingJobLauncher
from pt_peft_flare.parent.shut_out import ShutOut
from pt_peft_flare.parent.site_jobs import SiteJobs
from pt_peft_flare.run_context import is_simulation
from pt_peft_flare.signs_of_life import SignsOfLife
from pt_peft_flare.simulated_restarts import restart_killed_sites
from pt_peft_flare.site_tasks import SiteTask
from pt_peft_flare.task_notice import ignore_early_notices

NAMES = [(label, name) for label, use in USES.items() for name in use.names]
FUNCTIONS = [(label, name) for label, name in NAMES if "(" in name]


@pytest.fixture(autouse=True)
def warn_again(monkeypatch):
    for use in USES.values():
        monkeypatch.setattr(use, "_warned", False)


def lose(monkeypatch, use: Use) -> None:
    """Makes FLARE one without what `use` needs."""
    monkeypatch.setattr(use, "names", (*use.names, "nvflare.gone:Gone"))


def owner_of(name: str) -> tuple[Any, str]:
    """The class or module that has a name of the table, and the name itself."""
    module, _, rest = name.partition(":")
    if "mlflow" in module:
        pytest.importorskip("mlflow", reason="mlflow is not installed")
    *owners, last = rest.partition("(")[0].split(".")
    owner: Any = importlib.import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    return owner, last


def remove(monkeypatch, owner: Any, name: str) -> None:
    """From a module, from a class with all that it inherits, or from what a class's constructors set."""
    bases = owner.__mro__[:-1] if isinstance(owner, type) else [owner]
    if not hasattr(owner, name):
        for base in bases:
            monkeypatch.setattr(base, "__init__", lambda self: None)
    for base in [base for base in bases if name in vars(base)]:
        monkeypatch.delattr(base, name)


def test_the_pin_and_the_table_are_of_one_version():
    assert importlib.metadata.version("nvflare") == KNOWN
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"nvflare=={KNOWN}" in project["dependencies"]


@pytest.mark.parametrize(("label", "name"), NAMES)
def test_each_name_is_there_and_is_missed(label, name, monkeypatch, caplog):
    use = USES[label]
    owner, last = owner_of(name)
    assert not use.problems()
    remove(monkeypatch, owner, last)
    assert not use.usable()
    assert f".{last} is gone; " in caplog.text
    assert use.otherwise in caplog.text
    with pytest.raises(FlareChanged, match=f"differs from {KNOWN}: .*is gone"):
        use.require()


@pytest.mark.parametrize(("label", "name"), FUNCTIONS)
def test_each_function_that_takes_other_arguments_is_seen(label, name, monkeypatch, caplog):
    owner, last = owner_of(name)
    monkeypatch.setattr(owner, last, lambda another: None)
    assert not USES[label].usable()
    assert f".{last} takes (another), not (" in caplog.text


def test_a_module_that_is_gone_is_seen_and_a_warning_comes_once(monkeypatch, caplog):
    lose(monkeypatch, internals.TASK_CHECKS)
    assert not internals.TASK_CHECKS.usable()
    assert not internals.TASK_CHECKS.usable()
    assert caplog.text.count("nvflare.gone cannot be imported") == 1


def test_the_table_is_light():
    code = "import sys, pt_peft_flare.flare_internals; print({'nvflare', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_without_its_name_the_end_of_a_job_is_flares_own(monkeypatch):
    lose(monkeypatch, internals.END_WITHOUT_TORCH)
    communicator = WFCommServer()
    short_waits.end_without_torch(communicator)
    assert "_cleanup_inflight_tensor_downloads" not in vars(communicator)


@pytest.mark.parametrize("lost", ["JOB_END_LOOKS", "SHUTDOWN_GRACE", "SITE_START_SLEEPS", "SITE_START_FORK"])
def test_without_one_name_the_simulators_other_waits_are_short(lost, monkeypatch):
    before: Any = MainProcessMonitor._start_shutdown
    monkeypatch.setattr(MainProcessMonitor, "_start_shutdown", before)  # put back afterwards, as the others
    for name in ("time", "subprocess"):
        monkeypatch.setattr(simulator_runner, name, getattr(simulator_runner, name))
    monkeypatch.setattr(short_waits, "leave_cores_to_host", lambda: None)
    monkeypatch.setattr(short_waits, "SiteFork", lambda: None)
    lose(monkeypatch, USES[lost])
    server = SimpleNamespace(check_engine_frequency=3.0)
    fl_ctx: Any = SimpleNamespace(get_engine=lambda: SimpleNamespace(server=server))
    short_waits.hasten_simulation(fl_ctx)
    assert (server.check_engine_frequency == 3.0) == (lost == "JOB_END_LOOKS")
    assert (MainProcessMonitor._start_shutdown == before) == (lost == "SHUTDOWN_GRACE")
    assert isinstance(simulator_runner.time, ModuleType) == (lost == "SITE_START_SLEEPS")
    assert isinstance(simulator_runner.subprocess, ModuleType) == (lost == "SITE_START_FORK")


@pytest.mark.parametrize("lost", ["SITE_SYNC_SLEEP", "SITE_END_QUIET"])
def test_without_one_name_a_sites_other_wait_is_short(lost, monkeypatch):
    monkeypatch.setattr(client_runner, "time", client_runner.time)
    monkeypatch.setattr(ClientFedEventRunner, "__init__", ClientFedEventRunner.__init__)
    lose(monkeypatch, USES[lost])
    short_waits.hasten_site()
    assert isinstance(client_runner.time, ModuleType) == (lost == "SITE_SYNC_SLEEP")
    assert (ClientFedEventRunner().queue_empty_period == 2.0) == (lost == "SITE_END_QUIET")


def test_without_its_name_notices_are_logged_as_flare_does(monkeypatch):
    lose(monkeypatch, internals.EARLY_NOTICES)
    logger = logging.getLogger("nvflare.private.aux_runner.AuxRunner")
    before = list(logger.filters)
    ignore_early_notices()
    assert logger.filters == before


@pytest.mark.parametrize("there", [True, False])
def test_without_its_name_tasks_are_looked_at_as_often_as_flare_does(there, monkeypatch):
    if not there:
        lose(monkeypatch, internals.TASK_CHECKS)
    controller: Any = PeftFedAvg()
    standing, looks = [1, 1, 0], []
    controller.get_num_standing_tasks = lambda: standing.pop(0)
    controller.communicator = SimpleNamespace(check_tasks=lambda: looks.append(1))
    controller.abort_signal = Signal()
    engine = SimpleNamespace(send_aux_request=lambda **arguments: None, get_clients=list)
    controller.engine = engine
    controller.fl_ctx = SimpleNamespace(get_engine=lambda: engine)
    assert not controller.ask(SiteTask("train", 0, 1, 9, 9, 1, []), lambda result: None).reports
    assert len(looks) == (2 if there else 0)


def test_without_its_names_a_job_ends_with_one_sentence(monkeypatch):
    lose(monkeypatch, internals.CONTROLLER)
    controller = PeftFedAvg()
    said = []
    monkeypatch.setattr(controller, "panic", said.append)
    controller.run()
    (reason,) = said
    assert "nvflare.gone cannot be imported" in reason
    assert f"the job cannot run; nvflare=={KNOWN} would be right" in reason


def test_without_its_names_nobody_is_silent_and_flare_watches_itself(monkeypatch):
    lose(monkeypatch, internals.SIGNS_OF_LIFE)
    communicator, life = WFCommServer(), SignsOfLife()
    life.listen(communicator)
    assert not {"client_is_active", "process_dead_client_report"} & vars(communicator).keys()
    assert not life.is_lost("a", 0)
    assert life.silent_s("a") == 0


def test_without_its_names_killed_simulated_sites_are_flares_own(monkeypatch):
    lose(monkeypatch, internals.SITE_RESTARTS)
    runner = simulator_runner.SimulatorClientRunner
    before = runner.do_one_task, runner._create_connection
    restart_killed_sites(print, bool)
    assert before == (runner.do_one_task, runner._create_connection)


def test_without_their_name_certificates_begin_when_flares_do(monkeypatch):
    lose(monkeypatch, internals.CERTIFICATES)
    taken = []
    monkeypatch.setattr(CertBuilder, "_generate_cert", staticmethod(lambda *args, **kwargs: taken.append(kwargs)))
    kits.BackdatedCertBuilder._generate_cert("subject", not_valid_before="now")
    assert taken == [{"not_valid_before": "now"}]


KIT = {
    "local/resources.json.default": '{"servers": [{}], "client": {}, "components": []}',
    "local/authorization.json.default": '{"permissions": {"lead": {"byoc": "any"}}}',
    "startup/sub_start.sh": 'mkdir -p "$WORKSPACE/transfer"\n',
}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("local/resources.json.default", '{"components": []}', "resources.json.default is not as expected"),
        ("local/authorization.json.default", "{}", "authorization.json.default is not as expected"),
        ("startup/sub_start.sh", "#!/bin/sh\n", "sub_start.sh has no line 'mkdir -p"),
    ],
)
def test_other_kits_are_refused_in_one_sentence(file, content, message, tmp_path):
    for name, text in {**KIT, file: content}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    ctx: Any = SimpleNamespace(get_ws_dir=lambda one: tmp_path, get_kit_dir=lambda one: tmp_path / "startup")
    project: Any = SimpleNamespace(get_server=lambda: "server", get_clients=lambda: [])
    with pytest.raises(FlareChanged, match=message) as error:
        kits.KitBuilder().build(project, ctx)
    assert str(error.value).endswith(f"; the kits cannot be made; nvflare=={KNOWN} would be right.")


@pytest.mark.parametrize(
    ("component", "label"),
    [
        (Outcomes, "OUTCOMES"),
        (Rejoin, "REJOIN"),
        (ShutOut, "SHUT_OUT"),
        (InterruptedJobs, "INTERRUPTED_JOBS"),
        (OperatorCommands, "OPERATOR_COMMANDS"),
        (SiteJobs, "DELETE_RUN"),
    ],
)
def test_without_its_names_a_component_of_the_parent_does_nothing(component, label, monkeypatch, caplog):
    lose(monkeypatch, USES[label])
    fl_ctx: Any = SimpleNamespace()  # which has nothing that it could use
    component().handle_event(EventType.SYSTEM_START, fl_ctx)
    assert USES[label].otherwise in caplog.text


def test_without_its_names_no_job_manager_starts(monkeypatch, tmp_path):
    lose(monkeypatch, internals.JOB_META)
    with pytest.raises(FlareChanged, match="folders cannot be protected from leads"):
        JobManager(str(tmp_path)).handle_event(EventType.SYSTEM_START, FLContext())


def test_without_its_names_a_simulation_is_none(monkeypatch):
    engine = simulated(SimpleNamespace())
    fl_ctx: Any = SimpleNamespace(get_engine=lambda: engine)
    assert is_simulation(fl_ctx)
    monkeypatch.setattr(internals.SIMULATION, "names", ())
    assert not is_simulation(fl_ctx)


def test_without_its_name_a_jobs_submitter_is_whom_the_server_names(monkeypatch, tmp_path, caplog):
    lose(monkeypatch, internals.JOB_SIGNATURES)
    (tmp_path / "rootCA.pem").touch()
    said = {"submitter_name": "somebody", "submitter_org": "elsewhere", "submitter_role": "lead"}
    found = submitter_of(said, tmp_path, tmp_path / "rootCA.pem")
    assert found == {"name": "somebody", "org": "elsewhere", "role": "lead", "signed": False}
    assert internals.JOB_SIGNATURES.otherwise in caplog.text


def test_without_its_names_the_launcher_is_flares_own(monkeypatch):
    lose(monkeypatch, internals.RESTARTS)
    handle: Any = object()
    monkeypatch.setattr(ClientProcessJobLauncher, "launch_job", lambda self, job_meta, fl_ctx: handle)
    assert RestartingJobLauncher().launch_job({}, FLContext()) is handle


def test_without_its_names_mlflow_has_what_flare_gives_it(monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from nvflare.app_opt.tracking.mlflow.mlflow_receiver import MLflowReceiver

    from pt_peft_flare.mlflow_receiver import MlflowReceiver

    lose(monkeypatch, internals.MLFLOW_RUNS)
    receiver = MlflowReceiver()
    monkeypatch.setattr(MLflowReceiver, "save", lambda self, fl_ctx, shareable, origin: self.buffer[origin])
    nothing: Any = SimpleNamespace()
    receiver.save(nothing, nothing, "global")
