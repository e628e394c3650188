"""Memory of a further site: our simulated federation with few sites and with many.

python -m benchmark.speed.site_memory [--sites 4 64] [--rounds 1] [--images 32] [--out benchmark/results/speed_sites.json]
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmark.measurements.provenance import provenance
from benchmark.speed.contenders import fresh, ours
from benchmark.speed.measure import measure
from benchmark.speed.options import check_positive
from benchmark.speed.work import Work
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import check_place, write_atomically

OUT = Path("benchmark/results/speed_sites.json")


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.speed.site_memory", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sites", nargs=2, type=int, default=(4, 64), help="numbers of sites to compare, the smaller at a time (4 64)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="of training (default %(default)s)")
    parser.add_argument("--images", type=int, default=32, help="of a site (default %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="result file to write (default %(default)s)")
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
        works = [Work(sites=sites, rounds=options.rounds, images=options.images) for sites in (few, many)]
        found = further_site(*works, Path(temporary), few)
    write_atomically(options.out, (json.dumps({**origin, **found}, indent=1) + "\n").encode())
    print(f"{found['pss_per_site_gb']:.3f} GB for each further site")


def further_site(few: Work, many: Work, folder: Path, threads: int | None = None) -> dict:
    """``pss_per_site_gb``, and the runs that say so.

    Args:
        threads: sites at a time; None for all.
    """
    runs = []
    for work in (few, many):
        data = folder / str(work.sites) / "work"
        contender = ours(work, data, work.write(data), threads)
        run_folder = fresh(data.with_name("run"))
        contender.prepare(run_folder)
        found = measure(contender.command, run_folder, work.rounds, contender.environment)
        runs.append({"work": asdict(work), "threads": threads or work.sites, **found.to_json()})
        print(f"{work.sites} sites: {found.peak_pss_gb:.2f} GB, {found.wall_s:.0f} s", file=sys.stderr, flush=True)
    grown = runs[1]["peak_pss_gb"] - runs[0]["peak_pss_gb"]
    return {"pss_per_site_gb": grown / (many.sites - few.sites), "memory_runs": runs}


if __name__ == "__main__":
    sys.exit(main())
