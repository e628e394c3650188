"""Memory of a further site: our simulated federation with 8 sites and with 16, all at a time.

    python -m benchmark.speed.memory [--sites 8 16] [--out benchmark/results/speed_memory.json]
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmark.provenance import provenance
from benchmark.speed.contenders import fresh, ours
from benchmark.speed.measure import measure
from benchmark.speed.work import Work
from pt_peft.command import command
from pt_peft.errors import UserError
from pt_peft.files import check_place, write_atomically

OUT = Path("benchmark/results/speed_memory.json")


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.speed.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--sites", nargs=2, type=int, default=(8, 16), help="numbers of sites to compare (8 16)")
    parser.add_argument("--threads", type=int, help="sites at a time; else all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="of a site (default %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="result file to write (default %(default)s)")
    options = parser.parse_args(arguments)
    few, many = options.sites
    if not 1 < few < many:
        raise UserError(f"--sites: {few} {many}; two different numbers, the smaller one first and above 1, would be right.")
    check_place(options.out)
    result, peaks = {**provenance(), "threads": options.threads, "runs": {}}, {}
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        for sites in options.sites:
            work = Work(sites=sites, rounds=options.rounds, images=options.images)
            data = Path(temporary) / str(sites) / "work"
            contender = ours(work, data, work.write(data), options.threads)
            folder = fresh(data.with_name("run"))
            contender.prepare(folder)
            found = measure(contender.command, folder, work.rounds, contender.environment)
            result["runs"][sites] = {**found.to_json(), "work": asdict(work)}
            peaks[sites] = found.peak_pss_gb
            print(f"{sites} sites: {found.peak_pss_gb:.2f} GB, {found.wall_s:.0f} s", file=sys.stderr, flush=True)
    result["pss_per_site_gb"] = (peaks[many] - peaks[few]) / (many - few)
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(f"{result['pss_per_site_gb']:.3f} GB for each further site")


if __name__ == "__main__":
    sys.exit(main())
