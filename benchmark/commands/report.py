"""Writes a suite's report from its result file: one HTML page, Markdown, CSV, figures and slopes.

The first page answers the claims. If a gate of the suite fails, nothing is concluded: no report is written.
Ends with exit code 1 if a gate fails.

Example:
    python -m benchmark report smoke
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmark.commands.run import RESULTS, SUFFIX
from pt_peft.errors import UserError

REPORTS = Path(__file__).parents[2] / "runs" / "report"
"""Where reports go by default; git ignores it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("suite", help="name of a suite with results in benchmark/results, or path of a .jsonl file")
    parser.add_argument("--out", type=Path, help="folder to write to (default: runs/report/SUITE)")
    parser.add_argument(
        "--target",
        type=float,
        metavar="VALUE",
        help="validation value, 0 to 1, to count the bytes to (default: 95%% of the best of each panel and backbone)",
    )
    parser.add_argument(
        "--draft", action="store_true", help="write a report although gates failed: with warnings, without the answers"
    )


def run(options: argparse.Namespace) -> None:
    """Raises UserError if results are not there or do not fit together, or a gate fails; nothing is written then."""
    _check_plots()
    from benchmark.report.content import build
    from benchmark.report.gates import faults, judge
    from benchmark.report.markdown import to_markdown
    from benchmark.report.page import to_html
    from benchmark.report.panels import panels
    from benchmark.report.results import read_results
    from benchmark.report.slopes import fit_all, main_panels, to_json
    from benchmark.report.spreadsheet import to_csv
    from benchmark.report.statistics import REPLICATES
    from pt_peft.files import write_atomically

    if options.target is not None and not 0 < options.target <= 1:
        raise UserError(f"--target is {options.target:g}; a validation value above 0 and up to 1 would be right.")
    results = read_results(result_file(options.suite))
    found = panels(results, REPLICATES)
    verdicts = judge(results, found)
    if (failed := faults(verdicts)) and not options.draft:
        print(*failed, sep="\n", file=sys.stderr)
        raise UserError(
            f"{results.name}: gates of the suite failed, and no report is written; --draft writes one without the "
            "answers."
        )
    fits = fit_all(found)
    main = [panel.key for panel in main_panels(found)]
    report = build(results, found, fits, verdicts, options.target, REPLICATES)
    files = {figure.file: figure.svg for figure in report.figures} | {
        "report.csv": to_csv([*results.cells, *results.failed_cells]),
        "report.md": to_markdown(report),
        "report.html": to_html(report),
        "slopes.json": to_json(results.name, [fit for fit in fits if fit.panel in main]),
    }
    out = options.out or REPORTS / results.name
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(out / name, content.encode())
    print(f"{out / 'report.html'}, report.md, report.csv, slopes.json and {len(report.figures)} figures")


def result_file(suite: str) -> Path:
    """Path of the result file. Raises UserError if the name has none."""
    if suite.endswith(SUFFIX):
        return Path(suite)
    path = RESULTS / f"{suite}{SUFFIX}"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RESULTS.glob(f"*{SUFFIX}"))) or "none yet"
        raise UserError(
            f"suite '{suite}' has no results in {RESULTS}; those there are: {known}. The path of a {SUFFIX} file would "
            "be right too."
        )
    return path


def _check_plots() -> None:
    for package in ("matplotlib", "jinja2", "scipy"):
        if not find_spec(package):
            raise UserError(
                f"the package '{package}' is not installed; pip install matplotlib jinja2 scipy would be right."
            )
