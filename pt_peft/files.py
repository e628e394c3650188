"""Writes files so that a reader never sees half of one, and tells files apart by their content."""

import contextlib
import hashlib
import os
import tempfile
import uuid
from pathlib import Path

from pt_peft.errors import UserError

RUN_FOLDERS = ("", "server/simulate_job", "workspace", "simulate_job")
"""Where a run's files lie in a folder that a person has: the run's own, a simulator's workspace, a download."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to a temporary file beside `path`, flushes it to disk and renames it to `path`.

    Raises:
        OSError: which names `path`, if the folder cannot be written or the disk is full; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # Not `tempfile`, whose files only the owner can read: an adapter is made to be passed on.
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk's names no file, others the temporary one
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if it is not there."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it has just been replaced
                total += os.stat(os.path.join(parent, name), follow_symlinks=False).st_size
    return total


def check_place(path: Path) -> None:
    """Raises UserError, which names the option ``--out``, unless a file can be written as `path`."""
    folder = path.resolve().parent
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder; the name of a file would be right.")
    if not folder.is_dir():
        raise UserError(f"--out: {folder} is not a folder.")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--out: nothing can be written to {folder} ({error.strerror}).") from None
