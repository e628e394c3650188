"""What each role may do, by FLARE's own table of commands and its own evaluator."""

import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.cellnet.net_manager import NetManager
from nvflare.fuel.hci.reg import CommandModuleSpec, CommandSpec
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.reg import ServerCommandRegister
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.private.fed.server.server_cmd_modules import ServerCommandModules
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from benchmark.federation.provisioned import Federation
from pt_peft.experiment.site import Site
from pt_peft_flare.kits import KitBuilder
from pt_peft_flare.messages import SITES_CHANGED, SITES_SHUT_OUT, STATUS
from pt_peft_flare.parent.operator_commands import SCOPE, OperatorsOnly

SERVER, HOSPITAL, OTHER = "consortium", "hospital_1", "hospital_2"
ADMIN = Person("admin@consortium.example", SERVER, "project_admin")
LEAD = Person("lead@consortium.example", SERVER, "lead")
SECOND_LEAD = Person("second@consortium.example", SERVER, "lead")
HOSPITAL_ADMIN = Person("admin@hospital-1.example", HOSPITAL, "org_admin")
HOSPITAL_LEAD = Person("lead@hospital-1.example", HOSPITAL, "lead")
MEMBER = Person("member@consortium.example", SERVER, "member")

VIEW = {"check_status", "show_scopes", "list_jobs", "get_job_meta"}
SUBMIT = {"submit_job"}
OWN_JOB = {"abort", "abort_job", "delete_job", "delete_workspace", "clone_job", "download_job", "app_command"}
OPERATE = {
    "sys_info",
    "report_resources",
    "restart",
    "shutdown",
    "remove_client",
    "disable_client",
    "enable_client",
    "set_timeout",
    "call",
}
OWN_SITE = {"configure_site_log", "report_env"}
RIGHTS_WITHOUT_COMMAND = {"byoc", "server-predeployed-flwr", "clone_job", "app_command", "submit_job"}
COMMANDS = {
    *COMMAND_CATEGORIES,
    *(spec.name for module in ServerCommandModules.cmd_modules for spec in module.get_spec().cmd_specs),
    *RIGHTS_WITHOUT_COMMAND,
}


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("kits"), {"hospital-1": Site()}, 18998)


def granted(kits, person: Person, site_org: str, submitter: Person) -> set[str]:
    """The commands that `person` may give at a site, on jobs of `submitter` where a command is about a job."""
    name = "server" if site_org == SERVER else "hospital-1"
    policy = json.loads((kits.kit(name) / "local" / "authorization.json.default").read_text())
    authorizer = FLAuthorizer(site_org, policy)
    return {command for command in COMMANDS if authorizer.authorize(AuthzContext(command, person, submitter))[0]}


@pytest.mark.parametrize(
    ("person", "site_org", "submitter", "expected"),
    [
        (ADMIN, SERVER, LEAD, VIEW | SUBMIT | OWN_JOB | OPERATE | OWN_SITE),
        (ADMIN, HOSPITAL, LEAD, VIEW | SUBMIT | OWN_JOB | OPERATE),
        (LEAD, SERVER, LEAD, VIEW | SUBMIT | OWN_JOB),
        (LEAD, HOSPITAL, LEAD, VIEW | SUBMIT | OWN_JOB),
        (LEAD, SERVER, SECOND_LEAD, VIEW | SUBMIT),
        (HOSPITAL_LEAD, HOSPITAL, LEAD, VIEW | SUBMIT),
        (HOSPITAL_ADMIN, SERVER, LEAD, VIEW),
        (HOSPITAL_ADMIN, HOSPITAL, LEAD, VIEW | OPERATE | OWN_SITE),
        (HOSPITAL_ADMIN, OTHER, LEAD, VIEW),
        (HOSPITAL_ADMIN, SERVER, HOSPITAL_LEAD, VIEW | OWN_JOB - {"clone_job"}),
        (MEMBER, SERVER, LEAD, VIEW),
        (MEMBER, HOSPITAL, LEAD, VIEW),
    ],
)
def test_each_role_may_do_what_it_needs_and_no_more(kits, person, site_org, submitter, expected):
    assert granted(kits, person, site_org, submitter) == expected


def test_code_may_come_from_nobody_unless_the_project_file_says_so():
    for byoc in (False, True):
        policy: dict[str, Any] = {"permissions": dict.fromkeys(("project_admin", "org_admin", "lead", "member"), "any")}
        KitBuilder(byoc)._edit_authorization(policy)
        allowed = {role for role, rights in policy["permissions"].items() if rights["byoc"] == "any"}
        assert allowed == ({"project_admin", "lead"} if byoc else set())


@pytest.mark.parametrize(
    ("scope", "role", "may"), [(SCOPE, "lead", False), (SCOPE, "project_admin", True), ("sys", "lead", True)]
)
def test_commands_about_the_network_are_the_admins(scope, role, may):
    said = []
    entry = SimpleNamespace(name="stress", scope=SimpleNamespace(name=scope))
    conn: Any = SimpleNamespace(
        get_prop={ConnProps.CMD_ENTRY: entry, ConnProps.USER_ROLE: role}.get,
        append_error=lambda text, meta: said.append(text),
    )
    assert OperatorsOnly().pre_command(conn, ["stress"]) == may
    assert said == ([] if may else [f"'stress' is for a project_admin, not for a {role}"])


@pytest.mark.parametrize("role", ["lead", "project_admin"])
@pytest.mark.parametrize(("topic", "may"), [(STATUS, True), (SITES_SHUT_OUT, False), (SITES_CHANGED, False)])
def test_what_the_server_tells_a_job_nobody_says_in_its_place(topic, may, role):
    """By FLARE's own register of commands; it asks for the right `app_command` alone, which a lead has on its jobs."""
    ran, said = [], []
    register: Any = ServerCommandRegister(None)  # pyright: ignore[reportCallIssue]
    command = CommandSpec("app_command", "", "", lambda conn, args: ran.append(args))
    register.register_module_spec(CommandModuleSpec("job_mgmt", [command]))
    register.add_filter(OperatorsOnly())
    register.finalize()
    props: dict[str, Any] = {ConnProps.USER_ROLE: role}
    conn: Any = SimpleNamespace(
        get_prop=props.get, set_prop=props.__setitem__, append_error=lambda text, meta: said.append(text)
    )
    register.process_command(conn, f"app_command {uuid.uuid4()} {topic}")
    assert len(ran) == may
    assert said == ([] if may else [f"topic '{topic}' is not for people; {STATUS} is"])


def test_flare_asks_no_right_for_commands_about_the_network():
    """Else `OperatorCommands` would not be needed."""
    agent: Any = None
    spec = NetManager(agent).get_spec()
    assert spec.name == SCOPE
    assert not any(command.authz_func for command in spec.cmd_specs)
