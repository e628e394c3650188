from collections.abc import Callable

class ClientFedEventRunner:
    queue_empty_period: float
    __init__: Callable[..., None]
