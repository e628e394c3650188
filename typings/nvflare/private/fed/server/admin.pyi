from nvflare.fuel.hci.server.reg import ServerCommandRegister
from nvflare.private.admin_defs import Message

class FedAdminServer:
    cmd_reg: ServerCommandRegister
    def send_requests_and_get_reply_dict(
        self, requests: dict[str, Message], timeout_secs: float = 2.0
    ) -> dict[str, Message | None]: ...
