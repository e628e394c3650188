from typing import Any

from nvflare.apis.client import Client

class Task:
    timeout: int
    completion_status: Any

class ClientTask:
    client: Client
    result: Any  # whatever a site has sent: to be checked
