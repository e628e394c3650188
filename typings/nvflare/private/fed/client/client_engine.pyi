from collections.abc import Callable

from nvflare.apis.server_engine_spec import ServerEngineSpec

class ClientEngine(ServerEngineSpec):
    delete_run: Callable[[str], str]
