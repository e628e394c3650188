"""All names of FLARE that we use and its API does not promise, in one table.

Each `Use` says why, and what happens when a later FLARE has removed or changed a name. Before a use with a fall-back,
`Use.usable` checks the names and warns once; before one without, `Use.require` refuses in one sentence. FLARE is not
imported before that. The names are those of nvflare 2.9.0, which `pyproject.toml` pins.
"""

import dis
import importlib
import importlib.metadata
import inspect
import logging
from dataclasses import dataclass, field

from pt_peft.errors import UserError

log = logging.getLogger(__name__)

KNOWN = "2.9.0"
"""The version of nvflare whose names these are."""


class FlareChanged(UserError, RuntimeError):
    """FLARE has changed, and there is no other way. ``nvflare provision`` prints a RuntimeError as one line."""


@dataclass
class Use:
    """Names that one part of ours needs together."""

    why: str
    """What we do with them."""
    otherwise: str
    """What happens if one of them is gone or changed: the fall-back, or that there is none."""
    names: tuple[str, ...] = ()
    """``module:Class.attribute`` (of the class, or set by its constructor) or ``module:Class.method(self, parameter)``,
    with or without a class."""
    _warned: bool = field(default=False, init=False)

    def problems(self) -> list[str]:
        """What is not as in `KNOWN`, a phrase for each name; empty if all is well."""
        return [problem for name in self.names if (problem := _problem(name))]

    def usable(self) -> bool:
        """Whether all names are as we know them; warns the first time that they are not."""
        problems = self.problems()
        if problems and not self._warned:
            self._warned = True
            log.warning("%s", self._sentence("; ".join(problems)))
        return not problems

    def require(self) -> None:
        """Raises FlareChanged unless all names are as we know them."""
        if problems := self.problems():
            raise self.changed("; ".join(problems))

    def changed(self, problem: str) -> FlareChanged:
        """The error for a `problem` that shows only in use."""
        return FlareChanged(self._sentence(problem))

    def _sentence(self, problem: str) -> str:
        version = importlib.metadata.version("nvflare")
        return f"nvflare {version} differs from {KNOWN}: {problem}; {self.otherwise}."


def _problem(name: str) -> str | None:
    """What is wrong with a name of a `Use`, as a phrase; None if it is as we know it."""
    module, _, rest = name.partition(":")
    path, is_function, parameters = rest.partition("(")
    *owners, last = path.split(".")
    try:
        owner: object = importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    for one in owners:
        owner = getattr(owner, one, None)
    if not hasattr(owner, last):
        set_later = not is_function and _is_set_by_constructor(owner, last)
        return None if set_later else f"{module}.{path} is gone"
    if not is_function:
        return None
    found = getattr(owner, last)
    taken = ", ".join(inspect.signature(found).parameters) if callable(found) else "no arguments"
    wanted = parameters.removesuffix(")")
    return None if taken == wanted else f"{module}.{path} takes ({taken}), not ({wanted})"


def _is_set_by_constructor(owner: object, name: str) -> bool:
    """Whether an object of the class `owner` gets the attribute `name` when it is made."""
    constructors = [vars(base).get("__init__") for base in owner.__mro__] if isinstance(owner, type) else []
    steps = (step for one in constructors if inspect.isfunction(one) for step in dis.get_instructions(one))
    return any(step.opname == "STORE_ATTR" and step.argval == name for step in steps)


# The simulator

_SIMULATOR = "nvflare.private.fed.simulator"
SIMULATION = Use(
    "whether a process is the simulator's is told by its engine, which no job can choose",
    "a simulation counts as a federation, whose sites have the default limits",
    (
        f"{_SIMULATOR}.simulator_app_runner:SimulatorClientRunManager",
        f"{_SIMULATOR}.simulator_server:SimulatorServerEngine",
    ),
)
END_WITHOUT_TORCH = Use(
    "at the end of a job FLARE imports torch to end downloads of torch tensors; ours travel as arrays",
    "the end of a job imports torch, which takes seconds and hundreds of megabytes",
    ("nvflare.apis.impl.wf_comm_server:WFCommServer._cleanup_inflight_tensor_downloads(self, fl_ctx)",),
)
JOB_END_LOOKS = Use(
    "the simulator looks every 3 s whether its job has ended",
    "the simulator ends up to 3 s later",
    ("nvflare.private.fed.server.fed_server:FederatedServer.check_engine_frequency",),
)
SHUTDOWN_GRACE = Use(
    "the simulator's process sleeps for 3 s before it ends, for what remote sites may still have to say",
    "the simulator ends 3 s later",
    ("nvflare.fuel.f3.mpm:MainProcessMonitor._start_shutdown(shutdown_grace_time, cleanup_grace_time)",),
)
GOODBYES = Use(
    "the simulator's process takes leave of the sites' processes, which have ended, and waits for their answers",
    "the simulator ends half a second later",
    (
        "nvflare.fuel.f3.cellnet.core_cell:CoreCell.ALL_CELLS",
        "nvflare.fuel.f3.cellnet.core_cell:CoreCell.agent_lock",
        "nvflare.fuel.f3.cellnet.core_cell:CoreCell.agents",
    ),
)
SITE_START_SLEEPS = Use(
    "the simulator sleeps a second before it starts a site's process, and between looks whether it is there",
    "a simulation with fewer threads than sites takes seconds longer for each task",
    ("nvflare.private.fed.app.simulator.simulator_runner:time",),
)
SITE_START_FORK = Use(
    "the simulator forks to start a site's process, which then imports for a second, and OpenBLAS can lock up in a "
    "fork while the server multiplies; here a process that has imported and does nothing else is forked",
    "a site's process takes a second longer to start, and may hang if the server aggregates at that moment",
    (
        "nvflare.private.fed.app.simulator.simulator_runner:subprocess",
        "nvflare.private.fed.app.simulator.simulator_worker:main(args)",
    ),
)
SITE_GPUS = Use(
    "the simulator tells only its sites' processes which GPUs they have; here the server sees the first site's",
    "with -gpu the simulated server's worker also takes memory of a GPU that may be another's",
    (
        f"{_SIMULATOR}.simulator_server:SimulatorServerEngine.args",
        "nvflare.private.fed.utils.fed_utils:split_gpus(gpus)",
    ),
)
SITE_SYNC_SLEEP = Use(
    "a simulated site sleeps half a second before it reports to the server, in each of its processes",
    "a simulation with fewer threads than sites takes half a second longer for each task",
    ("nvflare.private.fed.client.client_runner:time",),
)
SITE_END_QUIET = Use(
    "a site's process of less than 2 s waits until it is 2 s old for events of others before it ends; ours has none",
    "a simulation with fewer threads than sites ends two seconds later",
    ("nvflare.widgets.fed_event:ClientFedEventRunner.queue_empty_period",),
)
SITE_START_WORDS = Use(
    "the simulator joins the command that starts a site of paths that it does not quote; here they are",
    "a workspace or a Python whose path has a blank or a quote cannot be simulated with",
    ("nvflare.private.fed.app.simulator.simulator_runner:shlex",),
)
SITE_RESTARTS = Use(
    "the simulator takes a site whose process was killed for one that has finished; here it is started again",
    "a simulated site whose process is killed is waited for until the deadline of each round, or ends the simulation",
    (
        "nvflare.private.fed.app.simulator.simulator_runner:SimulatorClientRunner.do_one_task"
        "(self, client, num_of_threads, gpu, lock, timeout, task_name)",
        "nvflare.private.fed.app.simulator.simulator_runner:SimulatorClientRunner._create_connection"
        "(self, open_port, timeout)",
    ),
)

# Tasks and their results

EARLY_NOTICES = Use(
    "FLARE logs an error for each notice of a task that comes to a site that is still starting",
    "notices of tasks that come while a site starts are logged as errors, which they are not",
    ("nvflare.private.aux_runner:AuxRunner",),
)
TASK_CHECKS = Use(
    "FLARE looks five times a second whether a task has ended; the controller asks it to look more often",
    "a round takes up to 0.2 s longer",
    ("nvflare.apis.impl.wf_comm_server:WFCommServer.check_tasks(self)",),
)
_COMMUNICATOR = "nvflare.apis.impl.wf_comm_server:WFCommServer"
SIGNS_OF_LIFE = Use(
    "FLARE tells its communicator when it hears of a site's job process, or of its death; here the controller listens",
    "a round waits for a silent site until its deadline, or half a minute for one that FLARE takes for dead",
    (
        f"{_COMMUNICATOR}.client_is_active(self, client_name, reason, fl_ctx)",
        f"{_COMMUNICATOR}.process_dead_client_report(self, client_name, fl_ctx)",
    ),
)
CONTROLLER = Use(
    "the controller hears here of results that failed or came late, and finds here what FLARE gives it for its run",
    f"the job cannot run; nvflare=={KNOWN} would be right",
    (
        "nvflare.app_common.workflows.model_controller:ModelController._accept_train_result"
        "(self, client_name, result, fl_ctx, is_unknown_task)",
        "nvflare.app_common.workflows.model_controller:ModelController.engine",
        "nvflare.app_common.workflows.model_controller:ModelController.fl_ctx",
        "nvflare.app_common.workflows.model_controller:ModelController.abort_signal",
        "nvflare.app_common.workflows.model_controller:ModelController.persistor",
        "nvflare.app_common.workflows.model_controller:ModelController.event(self, event_type)",
        "nvflare.app_common.workflows.model_controller:ModelController.panic(self, reason)",
    ),
)

# What comes from outside

_LOBS = "nvflare.fuel.utils.fobs.lobs"
GATE = Use(
    "the server's processes look at each message from outside before FLARE reads it",
    f"the server cannot be protected from its sites; nvflare=={KNOWN} would be right",
    (
        "nvflare.fuel.f3.cellnet.cell:decode_payload(message, encoding_key, fobs_ctx)",
        "nvflare.fuel.f3.cellnet.core_cell:decode_payload(message, encoding_key, fobs_ctx)",
        "nvflare.fuel.f3.cellnet.core_cell:CoreCell.add_incoming_filter(self, channel, topic, cb, args, kwargs)",
        "nvflare.fuel.f3.cellnet.core_cell:CoreCell.my_info",
        "nvflare.fuel.f3.stream_cell:StreamCell.byte_receiver",
        "nvflare.fuel.f3.streaming.byte_receiver:ByteReceiver.reject(self, message, error)",
        "nvflare.fuel.f3.streaming.byte_receiver:RxTask.completed",
        "nvflare.fuel.f3.streaming.byte_receiver:RxTask.origin",
        "nvflare.fuel.f3.streaming.byte_receiver:RxTask.rx_task_map",
        "nvflare.fuel.f3.streaming.byte_receiver:RxTask.stop(self, error, notify)",
        "nvflare.fuel.f3.cellnet.defs:MessagePropKey.COMMON_NAME",
        "nvflare.fuel.f3.cellnet.identity:CellIdentityResolver.require_match(self, fqcn, peer_cn, peer_desc)",
        "nvflare.fuel.f3.cellnet.defs:MessagePropKey.ENDPOINT",
        f"{_LOBS}:HEADER_STRUCT",
        f"{_LOBS}:HEADER_LEN",
        f"{_LOBS}:MARKER_MAIN",
        f"{_LOBS}:MARKER_DATUM_BLOB",
    ),
)

# Start-up kits

CERTIFICATES = Use(
    "FLARE's certificates begin at the moment of provisioning; ours a day before",
    "a site whose clock is behind refuses the server until its clock has reached the moment of provisioning",
    (
        "nvflare.lighter.impl.cert:CertBuilder._generate_cert"
        "(subject, subject_org, issuer, signing_pri_key, subject_pub_key, valid_days, ca, role, server, "
        "server_default_host, server_additional_hosts, extra_extensions, not_valid_before, not_valid_after)",
    ),
)
KIT_FILES = Use(
    "our builder edits resources.json.default, authorization.json.default, start.sh, sub_start.sh, stop_fl.sh and "
    "fl_admin.sh of FLARE's kits, and sees then whether they have what it looks for",
    f"the kits cannot be made; nvflare=={KNOWN} would be right",
)

# The parent processes of server and sites

_ENGINE = "nvflare.private.fed.server.server_engine:ServerEngine"
_SERVER = "nvflare.private.fed.server.fed_server:FederatedServer"
_JOB_RUNNER = "nvflare.private.fed.server.job_runner:JobRunner"
_ADMIN = "nvflare.private.fed.server.admin:FedAdminServer"
_LAUNCHERS = "nvflare.app_common.job_launcher"

OUTCOMES = Use(
    "FLARE lists a job as failed, or ends it, when one site has gone or failed; here the quorum decides",
    "a site that goes or fails during a job can end it, or have it listed as FINISHED:ABNORMAL",
    (
        f"{_ENGINE}.job_runner",
        f"{_ENGINE}.run_processes",
        f"{_ENGINE}.exception_run_processes",
        f"{_ENGINE}.server",
        f"{_ENGINE}.get_clients(self)",
        f"{_JOB_RUNNER}.running_jobs",
        f"{_JOB_RUNNER}.lock",
        f"{_JOB_RUNNER}._pending_client_outcomes",
        f"{_JOB_RUNNER}.resolve_client_outcome(self, job_id, client_name)",
        f"{_SERVER}.cell",
        f"{_SERVER}.client_manager",
        f"{_SERVER}.process_job_failure(self, request)",
        "nvflare.private.fed.server.client_manager:ClientManager.clients",
        "nvflare.apis.job_def:Job.min_sites",
        "nvflare.fuel.f3.cellnet.defs:CellChannel.SERVER_MAIN",
        "nvflare.fuel.f3.cellnet.defs:CellChannelTopic.REPORT_JOB_FAILURE",
        "nvflare.private.defs:CellMessageHeaderKeys.TOKEN",
        "nvflare.private.defs:JobFailureMsgKey.JOB_ID",
        "nvflare.private.defs:JobFailureMsgKey.CODE",
    ),
)
REJOIN = Use(
    "FLARE gives a job to the sites that are connected when it starts; here a site that comes later joins",
    "a site that is restarted, or comes late, takes no part in jobs that run already",
    (
        f"{_ENGINE}.job_runner",
        f"{_ENGINE}.run_processes",
        f"{_ENGINE}.server",
        f"{_ENGINE}.get_clients(self)",
        f"{_ENGINE}.check_client_resources(self, job, resource_reqs, fl_ctx)",
        f"{_ENGINE}.send_app_command(self, job_id, topic, cmd_data, timeout)",
        f"{_ENGINE}.start_client_job(self, job, client_sites, fl_ctx)",
        f"{_ENGINE}.cancel_client_resources(self, resource_check_results, resource_reqs, fl_ctx)",
        f"{_JOB_RUNNER}.running_jobs",
        f"{_JOB_RUNNER}.lock",
        f"{_JOB_RUNNER}._pending_client_outcomes",
        f"{_JOB_RUNNER}.resolve_client_outcome(self, job_id, client_name)",
        f"{_JOB_RUNNER}._make_deploy_message(job, app_data, app_name, fl_ctx)",
        f"{_SERVER}.admin_server",
        f"{_ADMIN}.send_requests_and_get_reply_dict(self, requests, timeout_secs)",
        "nvflare.utils.job_launcher_utils:get_resource_manager_spec(job_meta, site_name)",
        "nvflare.private.admin_defs:MsgHeader.RETURN_CODE",
        "nvflare.private.admin_defs:ReturnCode.OK",
        "nvflare.private.defs:ERROR_MSG_PREFIX",
        "nvflare.private.defs:TrainingTopic.CHECK_STATUS",
        "nvflare.private.defs:ClientStatusKey.RUNNING_JOBS",
        "nvflare.private.defs:ClientStatusKey.JOB_ID",
        "nvflare.apis.fl_constant:RunProcessKey.PARTICIPANTS",
        "nvflare.apis.job_def:Job.run_aborted",
        "nvflare.apis.job_scheduler_spec:DispatchInfo(app_name, resource_requirements, token)",
        "nvflare.utils.job_launcher_utils:get_resource_manager_spec(job_meta, site_name)",
    ),
)
_CLIENTS = "nvflare.private.fed.server.client_manager:ClientManager"
SHUT_OUT = Use(
    "FLARE shuts a site out of the registration alone; here its part in running jobs ends too",
    "a site that is shut out goes on taking part in the jobs that are running",
    (
        f"{_ENGINE}.run_processes",
        f"{_ENGINE}.server",
        f"{_SERVER}.client_manager",
        f"{_ENGINE}.send_app_command(self, job_id, topic, cmd_data, timeout)",
        f"{_CLIENTS}.is_client_disabled(self, client_name)",
        f"{_CLIENTS}.disabled_clients",
        f"{_SERVER}.admin_server",
        "nvflare.fuel.hci.server.hci:AdminServer.cmd_reg",
        "nvflare.fuel.hci.server.reg:ServerCommandRegister.add_filter(self, cmd_filter)",
        "nvflare.fuel.hci.server.reg:CommandFilter.post_command(self, conn, args)",
        "nvflare.apis.fl_constant:AdminCommandNames.CHECK_STATUS",
        f"{_CLIENTS}.get_clients(self)",
        f"{_CLIENTS}.set_clients(self, clients)",
        "nvflare.apis.fl_constant:RunProcessKey.PARTICIPANTS",
    ),
)
SHUT_OUT_NOTICE = Use(
    "FLARE's log at a site that is shut out does not say so; ours does",
    "the log of a site that is shut out says that its heartbeat fails, and not why",
    (
        "nvflare.private.fed.client.client_engine:ClientEngine.get_cell(self)",
        "nvflare.fuel.f3.cellnet.cell:Cell.core_cell",
        "nvflare.fuel.f3.cellnet.core_cell:CoreCell.add_incoming_reply_filter(self, channel, topic, cb, args, kwargs)",
        "nvflare.apis.event_type:EventType.SYSTEM_BOOTSTRAP",
    ),
)
INTERRUPTED_JOBS = Use(
    "FLARE lists jobs that the server's death broke off as running for ever; here they are closed when it starts again",
    "jobs that the server's death broke off stay listed as running, without their results",
    (
        "nvflare.apis.impl.job_def_manager:SimpleJobDefManager.get_jobs_by_status(self, status, fl_ctx)",
        "nvflare.apis.impl.job_def_manager:SimpleJobDefManager.save_workspace(self, jid, data, fl_ctx)",
        "nvflare.apis.impl.job_def_manager:SimpleJobDefManager.set_status(self, jid, status, fl_ctx)",
    ),
)
RESTARTS = Use(
    "FLARE's launcher reports a killed job process as a failure of the job; ours starts the process again",
    "a site's job process that is killed ends the job for all sites",
    (
        f"{_LAUNCHERS}.client_process_launcher:ClientProcessJobLauncher.launch_job(self, job_meta, fl_ctx)",
        f"{_LAUNCHERS}.process_launcher:ProcessHandle.adapter",
        "nvflare.utils.process_utils:ProcessAdapter.poll(self)",
    ),
)
JOB_GPUS = Use(
    "FLARE gives a job's GPUs to all processes that a site starts from then on; here to that job's alone",
    "a job's process that is started again, and a job that asks for no GPU, see the GPUs of the job that began last",
    (
        "nvflare.app_common.resource_consumers.gpu_resource_consumer:GPUResourceConsumer.consume(self, resources)",
        "nvflare.private.fed.client.scheduler_cmds:StartJobProcessor.process(self, req, app_ctx)",
    ),
)
_GPUS = "nvflare.app_common.resource_managers.gpu_resource_manager:GPUResourceManager"
WHOLE_GPUS = Use(
    "FLARE gives jobs that do not say how much memory they need the same GPUs; here each has its own",
    f"a site cannot give GPUs to jobs; nvflare=={KNOWN} would be right",
    (
        f"{_GPUS}._check_required_resource_available(self, resource_requirement)",
        f"{_GPUS}._reserve_resource(self, resource_requirement)",
        f"{_GPUS}._deallocate(self, resources)",
        f"{_GPUS}.allocate_resources(self, resource_requirement, token, fl_ctx)",
        f"{_GPUS}.num_gpu_key",
        f"{_GPUS}.gpu_mem_key",
        f"{_GPUS}.resources",
    ),
)
DELETE_RUN = Use(
    "FLARE deletes what a job has left at a site, its ledger too, when the lead deletes the job; here it stays",
    "a lead that deletes a job deletes the sites' ledgers of it",
    ("nvflare.private.fed.client.client_engine:ClientEngine.delete_run(self, job_id)",),
)
JOB_META = Use(
    "FLARE takes a lead's words in meta.json for its own, and names folders by them; here they are looked at before",
    f"the server's own folders cannot be protected from leads; nvflare=={KNOWN} would be right",
    (
        "nvflare.apis.event_type:EventType.SUBMIT_JOB",
        "nvflare.apis.fl_constant:FLContextKey.JOB_BLOCK_REASON",
        "nvflare.apis.fl_constant:FLContextKey.JOB_META",
        "nvflare.apis.impl.job_def_manager:SimpleJobDefManager.get_app(self, job, app_name, fl_ctx)",
        "nvflare.apis.impl.job_def_manager:SimpleJobDefManager.update_meta(self, jid, meta, fl_ctx)",
        "nvflare.private.fed.utils.app_deployer:AppDeployer.deploy"
        "(self, workspace, job_id, job_meta, app_name, app_data, fl_ctx)",
    ),
)
JOB_SIGNATURES = Use(
    "FLARE signs a job with the key of the person who submits it; a site reads who that was",
    "who has submitted a job is shown as the server says it",
    (
        "nvflare.lighter.utils:verify_folder_signature_and_get_signers"
        "(src_folder, root_ca_path, single_signer, signature_file)",
    ),
)
OPERATOR_COMMANDS = Use(
    "FLARE asks no right for its commands about the network; here they are a project admin's",
    "whoever may log in at the server may use FLARE's hidden commands about its network",
    (
        f"{_ENGINE}.server",
        f"{_SERVER}.admin_server",
        "nvflare.fuel.hci.server.hci:AdminServer.cmd_reg",
        "nvflare.fuel.hci.server.reg:ServerCommandRegister.add_filter(self, cmd_filter)",
        "nvflare.fuel.hci.server.reg:CommandFilter.pre_command(self, conn, args)",
        "nvflare.fuel.hci.server.constants:ConnProps.CMD_ENTRY",
        "nvflare.fuel.hci.server.constants:ConnProps.USER_ROLE",
    ),
)

# Recipes

RECIPES = Use(
    "a recipe's job is written as our job folder, and its settings of single sites go into the simulation's site.json",
    f"recipes cannot be used; nvflare=={KNOWN} would be right",
    (
        "nvflare.recipe.spec:Recipe._apply_per_site_config(self, config)",
        "nvflare.recipe.spec:Recipe._job",
        "nvflare.job_config.api:FedApp.generate_tracked_id(self, id)",
        "nvflare.job_config.api:FedJob._deploy_map",
        "nvflare.job_config.api:FedJob.clients",
        "nvflare.job_config.api:FedJob.job",
        "nvflare.job_config.fed_job_config:FedJobConfig.generate_job_config(self, job_root)",
    ),
)

# Tracking

_MLFLOW = "nvflare.app_opt.tracking.mlflow.mlflow_receiver:MLflowReceiver"
MLFLOW_RUNS = Use(
    "FLARE's receiver begins runs for the sites that are there at the start; ours also for sources that come later",
    "scalars of the federation as a whole, and of sites that join later, are left out of MLflow",
    (
        f"{_MLFLOW}.artifact_location",
        f"{_MLFLOW}.buffer",
        f"{_MLFLOW}.buffer_data(self, data, record_origin)",
        f"{_MLFLOW}.kw_args",
        f"{_MLFLOW}.save(self, fl_ctx, shareable, record_origin)",
        f"{_MLFLOW}._get_artifact_location(self, relative_path, fl_ctx)",
        f"{_MLFLOW}._get_tags(self, tag_key, kwargs)",
        f"{_MLFLOW}._init_buffer(self, site_names)",
        f"{_MLFLOW}._mlflow_setup(self, art_full_path, experiment_name, experiment_tags, site_names, fl_ctx)",
    ),
)
_TENSORBOARD = "nvflare.app_opt.tracking.tb"
TENSORBOARD_WRITERS = Use(
    "the experiment, its table of hyperparameters and the layout of charts go into the file of the curves",
    "TensorBoard has the curves alone",
    (
        f"{_TENSORBOARD}.tb_receiver:TBAnalyticsReceiver.root_log_dir",
        f"{_TENSORBOARD}.tb_receiver:TBAnalyticsReceiver.writers_table",
        f"{_TENSORBOARD}.tb_event_writer:TensorBoardEventWriter.add_text(self, tag, text_string, global_step)",
        f"{_TENSORBOARD}.tb_event_writer:TensorBoardEventWriter.writer",
    ),
)

USES = {name: value for name, value in list(globals().items()) if isinstance(value, Use)}
"""All of them, by name."""
