"""What several measurements are asked."""

import argparse
from pathlib import Path

from pt_peft.errors import UserError
from pt_peft.files import check_place


def parse_with_repeats(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *, repeats: int, out: Path
) -> argparse.Namespace:
    """Parses `arguments`, ``--repeats`` and ``--out`` among them.

    Args:
        repeats, out: defaults.

    Raises:
        UserError: if either makes no sense.
    """
    parser.add_argument("--repeats", type=int, default=repeats, help="of each measurement (default %(default)s)")
    parser.add_argument("--out", type=Path, default=out, help="result file to write (default %(default)s)")
    options = parser.parse_args(arguments)
    check_positive(options, "repeats")
    check_place(options.out)
    return options


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Raises UserError if one of these is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)}; 1 or more would be right.")
