from nvflare.apis.client import Client
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.message import Message
from nvflare.private.fed.server.admin import FedAdminServer
from nvflare.private.fed.server.server_engine import ServerEngine

class ClientManager:
    clients: dict[str, Client]
    disabled_clients: set[str]
    def get_clients(self) -> dict[str, Client]: ...
    def set_clients(self, clients: dict[str, Client]) -> None: ...
    def is_client_disabled(self, client_name: str) -> bool: ...

class FederatedServer:
    engine: ServerEngine
    cell: Cell
    client_manager: ClientManager
    admin_server: FedAdminServer | None
    check_engine_frequency: float
    def process_job_failure(self, request: Message) -> Message: ...
