"""Builders for `nvflare provision`, named in the project file: they make start-up kits for this project's jobs."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.x509 import Certificate
from nvflare.lighter.constants import CtxKey, PropKey, TemplateSectionKey
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.spec import Builder, Project, ProvisionContext

from pt_peft.errors import unlike_expected
from pt_peft.experiment.admission import SITE_CLASSES
from pt_peft.experiment.limits import BETTER_SITES
from pt_peft.files import write_atomically
from pt_peft_flare.flare_internals import CERTIFICATES, KIT_FILES
from pt_peft_flare.gate import FRAME_BYTES

SERVER_CLASSES = (
    "pt_peft_flare.controller.PeftFedAvg",
    "pt_peft_flare.persistor.AdapterPersistor",
    "nvflare.app_common.widgets.metrics_artifact_writer.MetricsArtifactWriter",
    "pt_peft_flare.tensorboard_receiver.TensorBoardReceiver",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
    "pt_peft_flare.mlflow_receiver.MlflowReceiver",
    "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver",
    "nvflare.app_opt.tracking.wandb.wandb_receiver.WandBReceiver",
    "pt_peft_flare.model_locator.AdapterLocator",
    "nvflare.app_common.workflows.cross_site_model_eval.CrossSiteModelEval",
    "nvflare.app_common.widgets.validation_json_generator.ValidationJsonGenerator",
    "pt_peft_flare.image_statistics.ImageStatistics",
    "nvflare.app_common.statistics.json_stats_file_persistor.JsonStatsFileWriter",
)
"""All that a job may have built at the server."""
LAUNCHER = "pt_peft_flare.parent.restarting_launcher.RestartingJobLauncher"
APP_VALIDATOR = "pt_peft_flare.parent.allowed_components.AllowedComponents"
SERVER_COMPONENTS = {
    "doorkeeper": "pt_peft_flare.parent.doorkeeper.Doorkeeper",
    "outcomes": "pt_peft_flare.parent.outcomes.Outcomes",
    "interrupted_jobs": "pt_peft_flare.parent.interrupted_jobs.InterruptedJobs",
    "rejoin": "pt_peft_flare.parent.rejoin.Rejoin",
    "shut_out": "pt_peft_flare.parent.shut_out.ShutOut",
    "refusals": "pt_peft_flare.parent.refusals.Refusals",
    "operator_commands": "pt_peft_flare.parent.operator_commands.OperatorCommands",
}
REPLACED_AT_SERVER = {
    "job_manager": "pt_peft_flare.parent.job_manager.JobManager",
    "process_launcher": "pt_peft_flare.parent.server_launcher.ServerJobLauncher",
}
"""Classes that stand in place of FLARE's and take their arguments."""
SITE_COMPONENTS = {
    "process_launcher": LAUNCHER,
    "app_deployer": "pt_peft_flare.parent.site_jobs.SiteJobs",
    "shut_out_notice": "pt_peft_flare.parent.shut_out_notice.ShutOutNotice",
}
REPLACED_AT_SITE = {
    "resource_manager": "pt_peft_flare.parent.job_gpus.JobGpus",
    "resource_consumer": "pt_peft_flare.parent.job_gpus.OneJobsGpus",
}
"""The same at a site."""

RIGHTS: dict[str, dict[str, str]] = {
    # Runs the federation: who may be in it, and its processes. May stop and end any job.
    "project_admin": {
        "submit_job": "any",
        "clone_job": "any",
        "manage_job": "any",
        "app_command": "any",
        "download_job": "any",
        "view": "any",
        "operate": "any",
        "configure_site_log": "o:site",
        "report_env": "o:site",
    },
    # Runs a hospital's site, and nothing at the server. May look at the jobs, and stop its own people's.
    "org_admin": {
        "manage_job": "o:submitter",
        "app_command": "o:submitter",
        "download_job": "o:submitter",
        "view": "any",
        "operate": "o:site",
    },
    # Submits jobs, looks at all, and stops, clones and downloads its own.
    "lead": {
        "submit_job": "any",
        "clone_job": "n:submitter",
        "manage_job": "n:submitter",
        "app_command": "n:submitter",
        "download_job": "n:submitter",
        "view": "any",
    },
    # Looks.
    "member": {"view": "any"},
}
"""What each role may do at the server and at every site, by FLARE's rights and their categories
(``nvflare/security/security.py``): ``any``; ``o:site`` where the person is of that site's organisation; ``n:submitter``
and ``o:submitter`` on jobs of the person, or of its organisation. What is not named is not granted."""
NOT_GRANTED = dict.fromkeys(
    (
        "submit_job",
        "clone_job",
        "manage_job",
        "app_command",
        "download_job",
        "operate",
        # Files of a site's workspace, its ledger and logs too (``cat``, ``grep`` …).
        "shell_commands",
        # Notes of a site's processes, which pass no filter.
        "show_stats",
        "show_errors",
        "reset_errors",
        # How much a site's process of a job logs.
        "configure_job_log",
        "byoc",
        "server-predeployed-flwr",
    ),
    "none",
)
"""Rights that nobody has unless `RIGHTS` grants them."""
BRINGS_CODE = ("project_admin", "lead")
"""Roles whose jobs may bring code, in a federation that allows code."""
DAEMON_LINE = "check_daemon() {"
"""The line of every ``sub_start.sh`` after which `STALE` goes."""
STALE = """\
# After a power cut these files name processes that are others by now: the script would not start for one that it takes
# for itself, nor start FLARE for one that it takes for FLARE's.
forget() {
  [[ -f "$1" && -d /proc/$$ ]] || return 0
  local pid="$(< "$1")"
  if [[ "$pid" == "$$" ]] || ! tr '\\0' ' ' < "/proc/$pid/cmdline" | grep -qF -- "$2"; then
    rm -f "$1"
  fi 2> /dev/null
}
forget "$WORKSPACE/daemon_pid.fl" "$DIR/sub_start.sh"
forget "$WORKSPACE/pid.fl" " -m $WORKSPACE "
"""
UNQUOTED = {
    "start.sh": ("$DIR/sub_start.sh &", '"$DIR/sub_start.sh" &'),
    "fl_admin.sh": ("$DIR/..", '"$DIR/.."'),
}
"""Words of FLARE's scripts that a blank in the path of a kit breaks, and what stands in their place."""
CONNECTIONS = 1000
"""Most connections to the server at a time, with or without a key, each with a thread of its own. FLARE's own kits set
no limit, and have a hundred threads: so many connections with one key shut all others out."""
GRPC_OPTIONS = {
    "grpc.max_send_message_length": FRAME_BYTES,
    "grpc.max_receive_message_length": FRAME_BYTES,
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.http2.min_recv_ping_interval_without_data_ms": 5_000,
}
"""Of both ends. A connection whose other end has not answered for half a minute is closed, and a site opens another, to
where the server's name leads by then: FLARE's own kits leave it to TCP, which gives up after a quarter of an hour."""
SERVER_GRPC_OPTIONS = {
    "grpc.max_allowed_incoming_connections": CONNECTIONS,
    "grpc.server_handshake_timeout_ms": 10_000,
    "grpc.max_connection_idle_ms": 60_000,
    "grpc.max_concurrent_streams": 4,
}
"""Of the server: a connection that has shown no key after ten seconds ends, and one that nothing runs on after a
minute."""
HEARTBEAT_TIMEOUT_S = 60
"""Without a sign of life for so long, a site counts as gone; FLARE's own kits wait for ten minutes."""
ANSWER_TIMEOUT_S = 30
"""Without an answer for so long, a site asks for its task, or sends its result, again; FLARE's own kits wait for five
minutes, which a line that is cut for a moment then costs."""
SLACK = timedelta(days=1)
"""How far behind a site's clock may be on the day of provisioning."""
CONNECTION_LINE = '"allow_adhoc_conns": false,'
"""The line of ``comm_config.json`` before which the section for gRPC goes."""
WORKSPACE_LINE = 'mkdir -p "$WORKSPACE/transfer"'
"""The line of the server's ``sub_start.sh`` after which `JOB_STORE` and `DESCRIPTORS` go."""
JOB_STORE = 'export NVFL_JOB_STORE_ROOT="${NVFL_JOB_STORE_ROOT:-$WORKSPACE/jobs}"\nmkdir -p "$NVFL_JOB_STORE_ROOT"\n'
"""FLARE's kits keep all jobs under /tmp, where a restarted machine or another server on it loses them."""
DESCRIPTORS = """\
# Every connection takes a descriptor, before it has shown a key: with the usual 1,024 a stranger's idle connections
# shut all sites out. Where less is allowed, as much as is allowed.
if [[ "$(ulimit -Sn)" != unlimited && "$(ulimit -Sn)" -lt 65536 ]]; then
  ulimit -Sn 65536 2> /dev/null || ulimit -Sn "$(ulimit -Hn)" 2> /dev/null || true
fi
"""
ASKS = ('echo "Please use FL admin console', "read -n1 -p")
"""Beginnings of the first and the last line of a site's ``stop_fl.sh`` that `ASK` stands in place of."""
ASK = """\
  echo "This site takes no job from now on. It ends within seconds, and the processes of its jobs with it."
  echo "Jobs that run go on without it if they have enough other sites. start.sh starts it again."
  if [[ "$1" == --yes ]]; then
    answer=y
  else
    read -n1 -p "Stop it (y/N)? " answer
  fi
"""
"""FLARE's script calls itself the last resort, and cannot be run without a terminal."""
SHUTDOWN_LINE = 'touch "$WORKSPACE/shutdown.fl"'
"""The line of a site's ``stop_fl.sh`` after which `UNTIL_STOPPED` goes."""
UNTIL_STOPPED = """\
    # A job's process removes this file when it starts, and with it the wish to stop.
    while [[ -f "$WORKSPACE/daemon_pid.fl" ]] && kill -0 "$(cat "$WORKSPACE/daemon_pid.fl")" 2> /dev/null; do
      touch "$WORKSPACE/shutdown.fl"
      sleep 1
    done
    rm -f "$WORKSPACE/shutdown.fl"
"""


class KitBuilder(Builder):
    """Makes the kits those of sites that have this package installed. Comes after `StaticFileBuilder`.

    - Only our own components can be built by a job (``class_allow_list``), and no code may come with one (``byoc``); a
      job with others is refused before it starts, with the reason (`allowed_components`, `refusals`, `job_manager`).
    - Each role has the rights that it needs (`RIGHTS`, `operator_commands`).
    - A killed job process is started again (`restarting_launcher`), a site that comes back joins what is running
      (`rejoin`), one that does not spoils no finished job (`outcomes`), and a server's death leaves no job listed as
      running (`interrupted_jobs`). A site that is shut down takes no job any more (`site_jobs`).
    - A site's logs stay there: FLARE's own kits send the errors of every job to the server, past all filters, and let a
      project admin read files of the site's workspace, and the lead delete a site's ledger with the job.
    - A line that is dead is noticed (`GRPC_OPTIONS`), and a host starts again after a power cut (`STALE`).
    - Each site has a ``local/site.json`` to fill in.
    """

    def __init__(self, byoc: bool = False):
        """Takes the arguments of the project file.

        Args:
            byoc: whether jobs may bring code along, which then may do all that the site's user may.

        Raises:
            ValueError: if `byoc` is neither true nor false.
        """
        if not isinstance(byoc, bool):  # pyright: ignore[reportUnnecessaryIsInstance]  # it comes from a YAML file
            raise ValueError(
                f"project file: argument 'byoc' of {type(self).__name__} is {byoc!r}; true or false would be right"
            )
        self._byoc = byoc

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Edits the kits of the server and of all sites. Raises FlareChanged if they are not as 2.9.0 makes them."""
        server = project.get_server()
        self._build_site(Path(ctx.get_ws_dir(server)), _edit_server)
        _add_lines(Path(ctx.get_kit_dir(server)) / "sub_start.sh", WORKSPACE_LINE, JOB_STORE + DESCRIPTORS)
        sites = project.get_clients()
        for one in (server, *sites):
            _add_lines(Path(ctx.get_kit_dir(one)) / "sub_start.sh", DAEMON_LINE, STALE)
            _quote(Path(ctx.get_kit_dir(one)) / "start.sh")
        for person in project.get_admins():
            _quote(Path(ctx.get_kit_dir(person)) / "fl_admin.sh")
        settings = {"limits": {"min_sites": BETTER_SITES}} if len(sites) >= BETTER_SITES else {}
        for client in sites:
            folder = Path(ctx.get_ws_dir(client))
            self._build_site(folder, _edit_client)
            stop = Path(ctx.get_kit_dir(client)) / "stop_fl.sh"
            _replace_lines(stop, *ASKS, ASK)
            _add_lines(stop, SHUTDOWN_LINE, UNTIL_STOPPED)
            write_atomically(folder / "local" / "site.json", (json.dumps(settings) + "\n").encode())

        self._add_grpc(project, ctx)

    def _add_grpc(self, project: Project, ctx: ProvisionContext) -> None:
        """Gives each ``local/comm_config.json``, which FLARE writes after us, a section for gRPC."""
        template: dict[str, str] = ctx[CtxKey.TEMPLATE]
        section = template.get(TemplateSectionKey.COMM_CONFIG, "")
        if CONNECTION_LINE not in section:
            raise KIT_FILES.changed(f"comm_config.json has no line '{CONNECTION_LINE}'")
        template[TemplateSectionKey.COMM_CONFIG] = section.replace(
            CONNECTION_LINE, f'"grpc": {{~~grpc~~}},\n    {CONNECTION_LINE}', 1
        )
        server = project.get_server()
        for participant in project.get_all_participants():
            options = GRPC_OPTIONS | (SERVER_GRPC_OPTIONS if participant is server else {})
            grpc = {"options": [[*option] for option in options.items()], "max_workers": CONNECTIONS}
            participant.get_prop(PropKey.COMM_CONFIG_ARGS)["grpc"] = json.dumps(grpc)

    def _build_site(self, folder: Path, edit_resources: Callable[[dict[str, Any]], None]) -> None:
        _edit(folder / "local" / "resources.json.default", edit_resources)
        _edit(folder / "local" / "authorization.json.default", self._edit_authorization)

    def _edit_authorization(self, policy: dict[str, Any]) -> None:
        roles = list(policy["permissions"])
        policy["permissions"] = {role: self._rights(role) for role in roles}

    def _rights(self, role: str) -> dict[str, str]:
        code = {"byoc": "any"} if self._byoc and role in BRINGS_CODE else {}
        return NOT_GRANTED | RIGHTS[role] | code


class BackdatedCertBuilder(CertBuilder):
    """Makes certificates that begin a day before the day of provisioning.

    FLARE's begin at that moment: a site whose clock is behind would refuse the server for as long. Stands in place of
    FLARE's `CertBuilder` and takes the same arguments.
    """

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Warns if the certificates cannot be backdated."""
        CERTIFICATES.usable()
        super().initialize(project, ctx)

    @staticmethod
    def _generate_cert(*args: Any, **kwargs: Any) -> Certificate:
        if CERTIFICATES.usable():
            kwargs["not_valid_before"] = (kwargs.get("not_valid_before") or datetime.now(UTC)) - SLACK
        return CertBuilder._generate_cert(*args, **kwargs)


def _edit_server(resources: dict[str, Any]) -> None:
    resources["class_allow_list"] = list(SERVER_CLASSES)
    resources["app_validator"] = {"path": APP_VALIDATOR, "args": {"config": "config_fed_server.json"}}
    resources["servers"][0]["heart_beat_timeout"] = HEARTBEAT_TIMEOUT_S
    # Ours send no logs, and FLARE's would write whatever a site sends to the server's disk.
    components = [one for one in resources["components"] if one["id"] != "log_receiver"]
    for component in components:
        component["path"] = REPLACED_AT_SERVER.get(component["id"], component["path"])
    resources["components"] = [*components, *_components(SERVER_COMPONENTS)]


def _edit_client(resources: dict[str, Any]) -> None:
    resources["class_allow_list"] = list(SITE_CLASSES)
    resources["app_validator"] = {"path": APP_VALIDATOR, "args": {"config": "config_fed_client.json"}}
    resources["allow_log_streaming"] = False
    resources["client"]["communication_timeout"] = ANSWER_TIMEOUT_S
    replaced = (*SITE_COMPONENTS, "site_log_streamer")
    components = [one for one in resources["components"] if one["id"] not in replaced]
    for component in components:
        component["path"] = REPLACED_AT_SITE.get(component["id"], component["path"])
    resources["components"] = [*components, *_components(SITE_COMPONENTS)]


def _components(paths: dict[str, str]) -> list[dict[str, Any]]:
    return [{"id": name, "path": path, "args": {}} for name, path in paths.items()]


def _edit(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Applies `edit` to the JSON file `path`. Raises FlareChanged if the file lacks what `edit` looks for."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        edit(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise KIT_FILES.changed(f"{path.name} is not as expected ({unlike_expected(error)})") from None
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _quote(script: Path) -> None:
    """Quotes what `UNQUOTED` has of `script`. Raises FlareChanged if it is not there."""
    words, quoted = UNQUOTED[script.name]
    text = script.read_text(encoding="utf-8") if script.is_file() else ""
    if words not in text:
        raise KIT_FILES.changed(f"{script.name} does not have '{words}'")
    script.write_text(text.replace(words, quoted), encoding="utf-8")


def _add_lines(script: Path, line: str, text: str) -> None:
    """Adds `text` after the first line that begins as `line`. Raises FlareChanged if there is none."""
    lines = _lines(script)
    lines.insert(_place(script, lines, line) + 1, text)
    script.write_text("".join(lines), encoding="utf-8")


def _replace_lines(script: Path, first: str, last: str, text: str) -> None:
    """Puts `text` in place of the lines from one that begins as `first` to one that begins as `last`.

    Raises:
        FlareChanged: if there are no such lines.
    """
    lines = _lines(script)
    lines[_place(script, lines, first) : _place(script, lines, last) + 1] = [text]
    script.write_text("".join(lines), encoding="utf-8")


def _lines(script: Path) -> list[str]:
    try:
        return script.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise KIT_FILES.changed(f"{script.name} cannot be read ({error.strerror})") from None


def _place(script: Path, lines: list[str], line: str) -> int:
    """Index of the first of `lines` that begins as `line`. Raises FlareChanged if there is none."""
    places = [number for number, one in enumerate(lines) if one.strip().startswith(line)]
    if not places:
        raise KIT_FILES.changed(f"{script.name} has no line '{line}'")
    return places[0]
