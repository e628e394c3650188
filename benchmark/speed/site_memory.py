"""Measures the memory of a further site: our simulated federation with few sites and with many.

python -m benchmark.speed.site_memory [--sites 4 64] [--rounds 1] [--images 32] [--out FILE]
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from benchmark.measurements.options import check_positive
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import finish
from benchmark.speed.contenders import fresh, ours
from benchmark.speed.measure import measure
from benchmark.speed.work import Work
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import check_place

OUT = Path("benchmark/results/speed_sites.json")


class FurtherSite(TypedDict):
    """What one more site takes."""

    pss_per_site_gb: float
    """Peak memory that one more site adds, 10^9 bytes."""
    memory_runs: list[dict[str, object]]
    """The two runs: the work, the sites at the same time, and the fields of `benchmark.speed.measure.Measured`."""


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.site_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sites",
        nargs=2,
        type=int,
        default=(4, 64),
        help="numbers of sites to compare; as many as the smaller run at the same time (default: 4 64)",
    )
    parser.add_argument("--rounds", type=int, default=1, help="rounds of training (default: %(default)s)")
    parser.add_argument("--images", type=int, default=32, help="training images of a site (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="result file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    few, many = options.sites
    if not 1 < few < many:
        raise UserError(
            f"--sites: {few} {many}; two different numbers, the smaller one first and above 1, would be right."
        )
    check_positive(options, "rounds", "images")
    check_place(options.out)
    origin = provenance()
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        small, large = (Work(sites=sites, rounds=options.rounds, images=options.images) for sites in (few, many))
        found = further_site(small, large, Path(temporary), few)
    finish(options, {**origin, **found}, f"{found['pss_per_site_gb']:.3f} GB for each further site")


def further_site(few: Work, many: Work, folder: Path, threads: int | None = None) -> FurtherSite:
    """Runs two works and compares their memory.

    Args:
        few: the work with fewer sites.
        many: the same work with more sites.
        folder: takes the works and what the runs write.
        threads: sites that run at the same time; None for all.

    Raises:
        UserError: if a run fails.
    """
    runs: list[dict[str, object]] = []
    peaks: list[float] = []
    for work in (few, many):
        data = folder / str(work.sites) / "work"
        contender = ours(work, data, work.write(data), threads)
        run_folder = fresh(data.with_name("run"))
        contender.prepare(run_folder)
        found = measure(contender.command, run_folder, work.rounds, contender.environment)
        runs.append({"work": asdict(work), "threads": threads or work.sites, **asdict(found)})
        peaks.append(found.peak_pss_gb)
        print(f"{work.sites} sites: {found.peak_pss_gb:.2f} GB, {found.wall_s:.0f} s", file=sys.stderr, flush=True)
    return {"pss_per_site_gb": (peaks[1] - peaks[0]) / (many.sites - few.sites), "memory_runs": runs}


if __name__ == "__main__":
    sys.exit(main())
