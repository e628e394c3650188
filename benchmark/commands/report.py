"""Writes a suite's report: Markdown, CSV, one HTML page and figures, and its slopes.

Example:
    python -m benchmark report benchmark/results/smoke --out /tmp/report
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from pt_peft.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "results",
        metavar="RESULTS_FOLDER",
        type=Path,
        help="results folder of a suite, such as benchmark/results/smoke",
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: the results folder)")
    parser.add_argument(
        "--slopes", type=Path, help="slopes.json to put the fits into (default: slopes.json beside the results folder)"
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="VALUE",
        help="validation value, 0 to 1, up to which bytes are counted (default: 95%% of the best of each panel and backbone)",
    )


def run(options: argparse.Namespace) -> None:
    """Raises UserError if the results are not there or do not fit together; nothing is written then."""
    _check_plots()
    from benchmark.report.content import build
    from benchmark.report.markdown import to_markdown
    from benchmark.report.page import to_html
    from benchmark.report.panels import panels
    from benchmark.report.results import read_results
    from benchmark.report.slopes import fit_all, main_panels, merge, read_entries
    from benchmark.report.spreadsheet import to_csv
    from benchmark.report.statistics import REPLICATES
    from pt_peft.files import write_atomically

    if options.target is not None and not 0 < options.target <= 1:
        raise UserError(f"--target is {options.target:g}; a validation value above 0 and up to 1 would be right.")
    results = read_results(options.results)
    slopes = options.slopes or options.results.resolve().parent / "slopes.json"
    read_entries(slopes)
    found = panels(results, REPLICATES)
    fits = fit_all(found)
    report = build(results, found, fits, options.target, REPLICATES)
    files = {figure.file: figure.svg for figure in report.figures}
    files |= {"report.csv": to_csv(results.cells), "report.md": to_markdown(report), "report.html": to_html(report)}
    out = options.out or options.results
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(out / name, content.encode())
    main = [panel.key for panel in main_panels(found)]
    merge(slopes, results.name, [fit for fit in fits if fit.panel in main])
    print(f"{out / 'report.html'}, report.md, report.csv and {len(report.figures)} figures; fits in {slopes}")


def _check_plots() -> None:
    for package in ("matplotlib", "jinja2", "scipy"):
        if not find_spec(package):
            raise UserError(f"the package '{package}' is not installed; pip install 'pt-peft[plots]' has it.")
