"""Runs a long job under random faults on hosts of their own, and says what was lost and what grew.

Every few rounds something from a seeded list happens: a worker or a site's job process is killed, a site's host loses
its power, its line is cut, the server's line is slow.

Example:
    python -m benchmark soak --sites 4 --rounds 40 --minutes 15
"""

import argparse
from pathlib import Path

from benchmark.commands.hosts import interrupt_on_sigterm
from benchmark.commands.run import RESULTS
from benchmark.measurements.options import check_positive
from pt_peft.files import check_place

REST_S = 1800
"""For the start, the last results and the comparison with a plain loop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--sites", type=int, default=10, help="number of sites (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=500, help="rounds of the job (default: %(default)s)")
    parser.add_argument("--minutes", type=int, default=120, help="stop the job after so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "soak.json", help="result file to write (default: %(default)s)"
    )
    parser.add_argument("--keep", type=Path, help="folder for kits and logs (default: they are removed)")


def run(options: argparse.Namespace) -> None:
    """Writes the result. Raises UserError if the soak cannot be run."""
    from benchmark.federation.hosts import run as run_there
    from benchmark.measurements.results import write_result

    check_positive(options, "sites", "rounds", "minutes")
    check_place(options.out)
    interrupt_on_sigterm()
    asked = [f"--{name}={getattr(options, name)}" for name in ("sites", "rounds", "minutes", "seed")]
    found = run_there("benchmark.federation.soak", asked, 60 * options.minutes + REST_S, options.keep)
    write_result(options.out, found)
    print(
        f"{found['finished_rounds']} rounds, {len(found['faults'])} faults: {found['results']} of "
        f"{found['expected_results']} results; {found['lost']['unexplained']} lost without a reason; the final "
        f"adapter differs from a plain loop's by {found['difference']:g}"
    )
    for role, one in found["drift"].items():
        for name, unit in (("mb_per_hour", "MB"), ("descriptors_per_hour", "descriptors")):
            if fit := one[name]:
                print(f"{role:15} {fit['slope']:+8.2f} {unit} an hour ({fit['low']:+.2f} to {fit['high']:+.2f})")
