"""FLARE start-up kits for sites that run this project's jobs: a builder for `nvflare provision`, named in the project file."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.spec import Builder, Project, ProvisionContext

from pt_peft.files import write_atomically

SITE_CLASSES = ("pt_peft_flare.learner.PeftLearner", "pt_peft_flare.filters.EgressFilter")
SERVER_CLASSES = (
    "pt_peft_flare.controller.PeftFedAvg",
    "pt_peft_flare.persistor.AdapterPersistor",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
    "pt_peft_flare.mlflow_receiver.MlflowReceiver",
)
"""All that a job may have built, there and here."""
LAUNCHER = "pt_peft_flare.parent.restarting_launcher.RestartingJobLauncher"
SERVER_COMPONENTS = {
    "outcomes": "pt_peft_flare.parent.outcomes.Outcomes",
    "interrupted_jobs": "pt_peft_flare.parent.interrupted_jobs.InterruptedJobs",
    "rejoin": "pt_peft_flare.parent.rejoin.Rejoin",
}
NOT_GRANTED = {"shell_commands": "none"}
"""Of FLARE's rights, to nobody: reading files of another site's workspace (``cat``, ``grep`` …), its ledger and logs too."""
HEARTBEAT_TIMEOUT_S = 60
"""Without a sign of life for so long, a site counts as gone; FLARE's own kits wait for ten minutes."""
SLACK = timedelta(days=1)
"""How far behind a site's clock may be on the day of provisioning."""
JOB_STORE = 'export NVFL_JOB_STORE_ROOT="${NVFL_JOB_STORE_ROOT:-$WORKSPACE/jobs}"\nmkdir -p "$NVFL_JOB_STORE_ROOT"\n'
"""FLARE's kits keep all jobs under /tmp, where a restarted machine or another server on it loses them."""


class KitBuilder(Builder):
    """After `StaticFileBuilder`: makes the kits those of sites that have this package installed.

    - Only our own components can be built by a job (``class_allow_list``), and no code may come with one (``byoc``).
    - A killed job process is started again (`restarting_launcher`), a site that comes back joins what is running (`rejoin`),
      one that does not spoils no finished job (`outcomes`), and a server's death leaves no job listed as running
      (`interrupted_jobs`).
    - A site's logs stay there: FLARE's own kits send the errors of every job to the server, past all filters, and let a
      project admin read files of the site's workspace.
    - Each site has a ``local/site.json`` to fill in.

    Args:
        byoc: whether jobs may bring code along, which then may do all that the site's user may.
    """

    def __init__(self, byoc: bool = False):
        if not isinstance(byoc, bool):
            raise ValueError(
                f"project file: argument 'byoc' of {type(self).__name__} is {byoc!r}; true or false would be right"
            )
        self._byoc = byoc

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        server = project.get_server()
        self._site(Path(ctx.get_ws_dir(server)), self._of_server)
        start = Path(ctx.get_kit_dir(server)) / "sub_start.sh"
        lines = start.read_text(encoding="utf-8").splitlines(keepends=True)
        first = next(number for number, line in enumerate(lines) if line.startswith('mkdir -p "$WORKSPACE/transfer"'))
        start.write_text("".join([*lines[: first + 1], JOB_STORE, *lines[first + 1 :]]), encoding="utf-8")
        for client in project.get_clients():
            folder = Path(ctx.get_ws_dir(client))
            self._site(folder, _of_client)
            write_atomically(folder / "local" / "site.json", b"{}\n")

    def _site(self, folder: Path, change: Callable[[dict], None]) -> None:
        _edit(folder / "local" / "resources.json.default", change)
        _edit(folder / "local" / "authorization.json.default", self._authorization)

    @staticmethod
    def _of_server(resources: dict) -> None:
        resources["class_allow_list"] = list(SERVER_CLASSES)
        resources["servers"][0]["heart_beat_timeout"] = HEARTBEAT_TIMEOUT_S
        resources["components"] += [{"id": name, "path": path, "args": {}} for name, path in SERVER_COMPONENTS.items()]

    def _authorization(self, policy: dict) -> None:
        permissions = policy["permissions"]
        rights = permissions["lead"].keys()
        for role, granted in permissions.items():
            granted = dict.fromkeys(rights, granted) if isinstance(granted, str) else granted
            # Whoever may stop a job may ask it how far it is (`status`).
            granted = granted | {"app_command": granted.get("manage_job", "none")}
            permissions[role] = granted | NOT_GRANTED | ({} if self._byoc else {"byoc": "none"})


class BackdatedCertBuilder(CertBuilder):
    """In place of FLARE's, whose certificates begin at the moment of provisioning: a site whose clock is behind would refuse
    the server for as long. Takes the same arguments.
    """

    @staticmethod
    def _generate_cert(*args, not_valid_before: datetime | None = None, **kwargs):
        return CertBuilder._generate_cert(
            *args, not_valid_before=(not_valid_before or datetime.now(UTC)) - SLACK, **kwargs
        )


def _of_client(resources: dict) -> None:
    resources["class_allow_list"] = list(SITE_CLASSES)
    resources["allow_log_streaming"] = False
    components = [one for one in resources["components"] if one["id"] not in ("process_launcher", "site_log_streamer")]
    resources["components"] = [*components, {"id": "process_launcher", "path": LAUNCHER, "args": {}}]


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
