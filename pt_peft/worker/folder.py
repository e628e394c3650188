"""A host's folder in the system's temporary folder: it holds the socket and the workers' turns."""

import shutil
import socket
import tempfile
import time
from pathlib import Path

SOCKET = "host"
"""Name of the socket."""
_PREFIX = "pt-peft-"
_SETTLED_S = 60
"""Seconds after which a host that was started listens."""


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """Makes a new folder, and removes those of hosts that were killed, as FLARE's simulator kills them on Ctrl-C.

    Raises:
        OSError: if it cannot be made.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=_PREFIX)


def _is_abandoned(folder: Path) -> bool:
    """Whether a host has listened there and none does any more."""
    try:
        if time.time() - folder.stat().st_mtime < _SETTLED_S:
            return False
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(folder / SOCKET))
    except ConnectionRefusedError:
        return True
    except OSError:  # another user's, or no host's
        return False
    return False
