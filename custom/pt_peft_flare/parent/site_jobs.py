"""What a site does with jobs that come to it, and with its own files of those that came before."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.utils.app_deployer import AppDeployer

from pt_peft.experiment.deployment import deployment_of
from pt_peft_flare import ledger
from pt_peft_flare.flare_internals import DELETE_RUN
from pt_peft_flare.job_request import Refused, submitter_of
from pt_peft_flare.messages import printable
from pt_peft_flare.parent.job_meta import problem_of_stored

if TYPE_CHECKING:
    from nvflare.private.fed.client.client_engine import ClientEngine

SHUTDOWN = "shutdown.fl"
"""File that ``stop_fl.sh`` and FLARE's shutdown command make in the workspace, seconds before the processes end."""
SHUTS_DOWN = "the site is shutting down"


class SiteJobs(AppDeployer, FLComponent):
    """Deploys jobs at a site, in FLARE's place; runs in the site's parent process.

    - A job gets a folder of its own, and none that the site has for another purpose.
    - A site that is to shut down takes no job any more. It would be killed in the middle of it.
    - What a job has left at a site stays there: its ledger above all. FLARE deletes it when the job is deployed again
      (a site that was restarted joins its job), and whenever the lead deletes the job.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Keeps the site's files from the server, and has no resources for jobs once the site shuts down."""
        if event_type == EventType.SYSTEM_START and DELETE_RUN.usable():
            cast("ClientEngine", fl_ctx.get_engine()).delete_run = _keep
        elif event_type == EventType.BEFORE_CHECK_RESOURCE_MANAGER:
            workspace: Workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
            if shuts_down(workspace):
                fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, SHUTS_DOWN, private=True, sticky=False)

    def deploy(
        self,
        workspace: Workspace,
        job_id: str,
        job_meta: dict[str, Any],
        app_name: str,
        app_data: bytes,
        fl_ctx: FLContext,
    ) -> str:
        """Deploys the app of a job. Returns why that cannot be, or nothing."""
        if shuts_down(workspace):
            return SHUTS_DOWN
        if problem := problem_of_stored(job_id, job_meta):
            return problem
        run_dir = Path(workspace.get_run_dir(job_id))
        app = Path(workspace.get_app_dir(job_id)).name
        with tempfile.TemporaryDirectory(prefix=".kept-", dir=run_dir.parent) as folder:
            kept = Path(folder) / "run"
            if run_dir.exists():
                run_dir.rename(kept)
            try:
                refused = super().deploy(workspace, job_id, job_meta, app_name, app_data, fl_ctx) or ""
            finally:
                if kept.exists():
                    run_dir.mkdir(exist_ok=True)
                    for file in kept.iterdir():
                        if file.name != app and not (run_dir / file.name).exists():
                            shutil.move(file, run_dir)
        if refused:
            _note(run_dir, job_id, job_meta, app_name, refused)
            self.log_warning(fl_ctx, f"job {job_id} is refused: {printable(refused)}", fire_event=False)
        return refused


def shuts_down(workspace: Workspace) -> bool:
    """Whether the site is to end."""
    return (Path(workspace.get_root_dir()) / SHUTDOWN).exists()


def _note(run_dir: Path, job_id: str, job_meta: dict[str, Any], app_name: str, refused: str) -> None:
    """Notes in the job's ledger who has asked for what FLARE has not deployed; once, as the server asks again."""
    if ledger.has(run_dir, ledger.OPEN):
        return
    run_dir.mkdir(exist_ok=True)
    submitter, deployment = submitter_of(job_meta, run_dir, None), deployment_of(job_meta, app_name)
    asked: Refused = {"submitter": submitter, "deployment": deployment, "refused": [refused]}
    ledger.append(run_dir, ledger.opening_entry(job_id, asked))


def _keep(job_id: str) -> str:
    return f"A site keeps what jobs have left there: {job_id}."
