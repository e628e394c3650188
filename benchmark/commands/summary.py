"""Writes what all suites in benchmark/results have found to the small file that `pt-peft advise` reads.

Example:
    python -m benchmark summary claims.jsonl --out mine.json
"""

import argparse
from pathlib import Path

from benchmark.commands.run import RESULTS, SUFFIX
from pt_peft.commands.measured import PACKAGED
from pt_peft.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "results", nargs="*", type=Path, help="result files of suites (default: all in benchmark/results)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write, needed with result files (default: that which comes with the package)",
    )


def run(options: argparse.Namespace) -> None:
    """Raises UserError for files without ``--out``, a wrong file, a failed gate, or an output that cannot be written.

    Nothing is written then.
    """
    from benchmark.report.gates import check_gates
    from benchmark.report.results import read_results
    from benchmark.report.summary import summary
    from pt_peft.commands.measured import Measurements
    from pt_peft.files import check_place, write_atomically

    if options.results and options.out is None:
        raise UserError(
            "--out is missing: without it the file that comes with the package would have these results alone; a file "
            "to write, such as mine.json, would be right."
        )
    out = options.out or PACKAGED
    check_place(out)
    paths = options.results or sorted(RESULTS.glob(f"*{SUFFIX}"))
    results = [read_results(path) for path in paths]
    for one in results:
        check_gates(one)
    found = Measurements(measured=tuple(line for one in results for line in summary(one)))
    write_atomically(out, (found.model_dump_json(indent=1) + "\n").encode())
    print(f"{out}: {len(found.measured)} lines of {len(paths)} result files")
