"""Measures this project on a GPU, within a time, the most telling first; each result is on disk as soon as it is found.

    python -m benchmark.speed.device --minutes 10 --out results

It needs no network and no FLARE. What it measures and what each figure means stands in docs/benchmark/gpu.md.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmark.speed.device.packed import STARTED, missing


def main(arguments: list[str] | None = None) -> int:
    """Measures until all is measured or the time is over."""
    if absent := missing():
        print(f"error: this Python has no {', '.join(absent)}; see docs/benchmark/gpu.md.", file=sys.stderr)
        return 1
    from pt_peft.commands.dispatch import command

    return command(_main)(arguments)


def _main(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, required=True, help="minutes after which it has ended")
    parser.add_argument("--out", type=Path, required=True, help="folder without results")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    options = parser.parse_args(arguments)
    from pt_peft.errors import UserError

    if not 0 < options.minutes <= 24 * 60:
        raise UserError(f"--minutes: {options.minutes:g}; above 0 and at most {24 * 60} would be right.")
    try:
        from benchmark.speed.device.run import run
    except ModuleNotFoundError as error:
        raise UserError(f"this Python has no {error.name}; see docs/benchmark/gpu.md.") from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the worker host and temporary files go too
    with tempfile.TemporaryDirectory(prefix="device-") as folder:
        run(options.minutes, STARTED, options.out, options.device, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
