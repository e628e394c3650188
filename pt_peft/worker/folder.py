"""A host's folder in the system's temporary one: its socket, and its workers' turns."""

import shutil
import socket
import tempfile
import time
from pathlib import Path

SOCKET = "host"
_PREFIX = "pt-peft-"
_SETTLED_S = 60
"""After which a host that has started listens."""


def new_folder() -> tempfile.TemporaryDirectory:
    """A new one. Those of hosts that were killed are removed first: FLARE's simulator kills them on ctrl-C.

    Raises:
        OSError: if it cannot be made.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=_PREFIX)


def _is_left(folder: Path) -> bool:
    """Whether nobody listens there any more."""
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
