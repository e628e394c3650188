"""Options that several measurements have."""

import argparse
from pathlib import Path

from pt_peft.errors import UserError
from pt_peft.files import check_place


def parse_with_repeats(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *, repeats: int, out: Path
) -> argparse.Namespace:
    """Parses a measurement's arguments, with ``--repeats`` and ``--out`` added.

    Args:
        parser: has the measurement's own options; the two are added to it.
        arguments: those of the command line; None for the process's own.
        repeats: default of ``--repeats``.
        out: default of ``--out``.

    Raises:
        UserError: if ``--repeats`` is below 1 or nothing can be written to ``--out``.
    """
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each measurement (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out, help="result file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_positive(options, "repeats")
    check_place(options.out)
    return options


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Raises UserError if one of the options `names` is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)}; 1 or more would be right.")
