from collections.abc import Callable

class MainProcessMonitor:
    # A class method; typed as the attribute that we replace.
    _start_shutdown: Callable[[float, float], None]
