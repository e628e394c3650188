from collections.abc import Callable
from typing import Any

# The modules of these names, which we replace.
shlex: Any
subprocess: Any
time: Any

class SimulatorClientRunner:
    federated_clients: list[object]
    # Whether the thread ends, the next site, and the name of a site that has ended.
    do_one_task: Callable[..., tuple[bool, object, str | None]]
    _create_connection: Callable[..., object]
