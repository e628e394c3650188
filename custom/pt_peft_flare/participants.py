"""Which sites take part in a running job, as people shut them out and let them in again."""

from typing import TYPE_CHECKING, Any, cast

from nvflare.apis.fl_constant import ReservedTopic
from nvflare.apis.fl_context import FLContext
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.apis.shareable import Shareable

from pt_peft import reasons
from pt_peft.reasons import Reason
from pt_peft_flare.console import console
from pt_peft_flare.messages import SITES_CHANGED, SITES_SHUT_OUT

if TYPE_CHECKING:
    from nvflare.private.fed.server.server_engine import ServerEngine


class Participants:
    """Follows what the server's parent process says of the sites of a job.

    Attributes:
        out: sites that cannot answer any more, with the reason.
    """

    def __init__(self) -> None:
        self.out: dict[str, Reason] = {}

    def listen(self, engine: ServerEngineSpec) -> None:
        """Takes the parent's commands."""
        engine.register_app_command(SITES_CHANGED, self.changed)
        engine.register_app_command(SITES_SHUT_OUT, self.shut_out)

    def changed(self, topic: str, data: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        """Takes over which sites take part, and their tokens, from the server's parent process."""
        engine = fl_ctx.get_engine()
        engine.sync_clients_from_main_process()
        for client in engine.get_clients():
            self.out.pop(client.name, None)
        return {}

    def shut_out(self, topic: str, data: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        """Lets sites take no further part: what they still send is refused."""
        engine = cast("ServerEngine", fl_ctx.get_engine())
        sites: list[str] = data["sites"]
        # Their processes would else ask for tasks for ever.
        engine.send_aux_request(
            targets=sites, topic=ReservedTopic.END_RUN, request=Shareable(), timeout=0.0, fl_ctx=fl_ctx, optional=True
        )
        manager = engine.server.client_manager
        manager.set_clients({token: one for token, one in manager.get_clients().items() if one.name not in sites})
        self.out |= dict.fromkeys(sites, reasons.ShutOut())
        console.warning("%s: shut out of the job", ", ".join(sites))
        return {}
