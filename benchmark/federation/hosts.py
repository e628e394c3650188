"""Runs programs that make hosts of their own, and keeps their results."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from benchmark.federation.faults import RESULT
from benchmark.federation.network import own_network
from benchmark.sweep import kill_with_parent
from pt_peft.errors import UserError
from pt_peft.schema import read_json

LOG = "log.txt"
"""What the program says, in its folder."""


def run(module: str, arguments: Sequence[str], seconds: float, keep: Path | None) -> dict[str, Any]:
    """Runs a module of this package in a network of its own.

    Args:
        module: its name; it writes `RESULT` into the folder that is its first argument.
        arguments: its others.
        seconds: after which it is killed.
        keep: folder for its files, which then stay; made here.

    Returns:
        The result.

    Raises:
        UserError: if it fails, or no network can be made on this machine.
    """
    network = own_network()
    if keep is not None:
        keep.mkdir(parents=True)
        return _run([*network, sys.executable, "-m", module], arguments, seconds, keep)
    with tempfile.TemporaryDirectory(prefix="pt_peft_hosts_") as folder:
        return _run([*network, sys.executable, "-m", module], arguments, seconds, Path(folder))


def _run(program: Sequence[str], arguments: Sequence[str], seconds: float, folder: Path) -> dict[str, Any]:
    command = [sys.executable, kill_with_parent.__file__, *program, str(folder), *arguments]
    with (
        open(folder / LOG, "wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as process,
    ):
        try:
            code = f"exit code {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            code = f"not ended within {seconds:g} s"
        finally:
            assert process.stdin is not None
            process.stdin.close()  # which ends it
    if not (folder / RESULT).exists():
        said = (folder / LOG).read_text(errors="replace").strip().splitlines()
        raise UserError(f"{program[-1]}: {said[-1].removeprefix('error: ') if said else code}")
    return cast(dict[str, Any], read_json(folder / RESULT))
