"""Puts a federation on hosts of their own through faults, and says what each one cost.

Server and three hospitals have their own network, firewall, processes and /etc/hosts on this machine (Linux namespaces;
root is not needed where users may make them). Each fault has a new federation. The result file keeps what other runs
have measured. Ends with exit code 1 if a fault could not be measured.

Example:
    python -m benchmark hosts --only cut_60 --only server_moves
"""

import argparse
import signal
from pathlib import Path
from typing import Any, cast

from benchmark.commands.run import RESULTS
from pt_peft.errors import UserError
from pt_peft.files import check_place
from pt_peft.schema import read_json

LIMIT_S = 1800
"""The most that one fault may take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--only", action="append", metavar="NAME", help="a fault; may be repeated (default: all)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "hosts.json", help="result file to write (default: %(default)s)"
    )
    parser.add_argument("--keep", type=Path, help="folder for kits and logs of each fault (default: they are removed)")


def run(options: argparse.Namespace) -> None:
    """Writes each result as it comes. Raises UserError after the last if one has failed."""
    from benchmark.federation.faults import FAULTS
    from benchmark.federation.hosts import run as run_there
    from benchmark.measurements.results import write_result

    names = options.only or list(FAULTS)
    if unknown := sorted(set(names) - FAULTS.keys()):
        raise UserError(f"--only: there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}.")
    check_place(options.out)
    interrupt_on_sigterm()
    failed: list[str] = []
    for name in names:
        try:
            keep = options.keep / name if options.keep else None
            found = run_there("benchmark.federation.faults", [name], LIMIT_S, keep)
        except UserError as error:
            failed.append(f"{name}: {error}")
            print(failed[-1], flush=True)
            continue
        known = cast(dict[str, Any], read_json(options.out)) if options.out.exists() else {}
        write_result(options.out, {one: (known | {name: found})[one] for one in FAULTS if one in known or one == name})
        print(line(name, found), flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} faults could not be measured: {'; '.join(failed)}")


def line(name: str, found: dict[str, Any]) -> str:
    """One fault's result for a person."""
    shown = {key: "-" if found[key] is None else f"{found[key]:g}" for key in NUMBERS}
    missed = f"  missed: {found['missed']}" if found["missed"] else ""
    return (
        f"{name:15} {found['state']:24} lost {shown['lost']:>3}  rounds of {shown['usual_round_s']:>5} s, then up to "
        f"{shown['longest_round_s']:>6} s, without it {shown['later_round_s']:>6} s  "
        f"back after {shown['back_s']:>6} s{missed}"
    )


NUMBERS = ("lost", "usual_round_s", "longest_round_s", "later_round_s", "back_s")


def interrupt_on_sigterm() -> None:
    """Makes SIGTERM end this process as Ctrl-C does: nothing is left running."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
