"""The reference work by everyone, alternating; medians, ratios and phases.

    python -m benchmark.speed [--repeats 3] [--only plain ours] [--flower PYTHON] [--out benchmark/results/speed.json]

For Flower give the Python of an environment that has ``flwr[simulation]`` besides this project's packages. Nothing else should
run on the machine.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmark.measurements.provenance import provenance
from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from benchmark.speed.contenders import Contender, flare_stock, flower, flower_version, fresh, ours, plain
from benchmark.speed.measure import Measured, measure
from benchmark.speed.options import parse_with_repeats
from benchmark.speed.site_memory import further_site
from benchmark.speed.work import Work
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.files import write_atomically
from pt_peft.model.adapter_file import load_adapter
from pt_peft_flare.persistor import FINAL

OUT = Path("benchmark/results/speed.json")
NAMES = ("plain", "flare_stock", "flower", "ours", "ours_int8")
FURTHER_SITE = (Work(sites=8, rounds=2, images=64), Work(sites=16, rounds=2, images=64))
"""The memory of more sites, all at a time, is that of a smaller work: it does not depend on how much there is to do."""
FIELDS = ("wall_s", "imports_s", "startup_s", "training_s", "gap_per_round_s", "tail_s", "peak_pss_gb", "wire_over_raw")


def medians(runs: list[Measured], raw_bytes: int, transfers: int) -> dict:
    """Of one contender's runs, each phase for itself."""
    rows = [run.to_json() for run in runs]
    found = {name: statistics.median(row[name] for row in rows) for name in FIELDS if name != "wire_over_raw"}
    wires = [row["wire_bytes"] for row in rows]
    counted = transfers and None not in wires
    found["wire_over_raw"] = statistics.median(wires) / (raw_bytes * transfers) if counted else None
    return {**found, "runs": rows}


def table(contenders: dict[str, dict]) -> str:
    """As Markdown."""
    lines = [["contender", "wall / plain", *FIELDS], ["---"] + ["---:"] * (len(FIELDS) + 1)]
    for name, found in contenders.items():
        ratio = found["wall_s"] / contenders["plain"]["wall_s"] if "plain" in contenders else None
        values = ["–" if value is None else f"{value:.2f}" for value in (ratio, *(found[field] for field in FIELDS))]
        lines.append([name, *values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these contenders; else all")
    parser.add_argument(
        "--flower", metavar="PYTHON", help="a Python that has flwr[simulation]; without it Flower is left out"
    )
    parser.add_argument("--keep", type=Path, help="a new folder for what the runs write; else a temporary one")
    options = parse_with_repeats(parser, arguments, repeats=3, out=OUT)
    if options.only and "flower" in options.only and not options.flower:
        raise UserError(
            "--only: flower needs a Python that has flwr[simulation], as --flower; see benchmark/README.md."
        )
    if options.keep and options.keep.exists():
        raise UserError(f"--keep: {options.keep} exists; the name of a new folder would be right.")
    origin = provenance()
    if options.flower:
        origin["versions"]["flwr"] = flower_version(options.flower)
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        folder = options.keep.resolve() if options.keep else Path(temporary) / "speed"
        work = Work()
        site = work.write(folder / "work")
        chosen = {
            "plain": lambda: plain(work, folder / "work"),
            "flare_stock": lambda: flare_stock(work, folder / "work"),
            "flower": lambda: flower(work, folder / "work", options.flower),
            "ours": lambda: ours(work, folder / "work", site),
            "ours_int8": lambda: ours(
                work, folder / "work", site, payload={"up": {"name": "int8"}, "down": {"name": "int8"}}
            ),
        }
        names = [name for name in NAMES if name in (options.only or NAMES) and (name != "flower" or options.flower)]
        contenders = {name: chosen[name]() for name in names}
        runs = alternating(contenders, options.repeats, folder, work.rounds)
        raw = work.raw_bytes(folder / "work")
        found = {name: medians(runs[name], raw, contenders[name].transfers) for name in names}
        if "ours" in found:
            found["ours"] |= further_site(*FURTHER_SITE, folder / "memory")
            found["ours"]["difference_from_oracle"] = difference(work, folder, site, options.repeats)
    if "plain" in found:
        ratios = {name: one["wall_s"] / found["plain"]["wall_s"] for name, one in found.items()}
    result = {
        **origin,
        "work": work.__dict__,
        "raw_bytes": raw,
        **found,
        "wall_over_plain": ratios if "plain" in found else None,
    }
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(table(found))


def alternating(contenders: dict[str, Contender], repeats: int, folder: Path, rounds: int) -> dict[str, list[Measured]]:
    """Each of them in turn, `repeats` times."""
    runs: dict[str, list[Measured]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, contender in contenders.items():
            run_folder = fresh(folder / "runs" / f"{name}-{repeat}")
            contender.prepare(run_folder)
            runs[name].append(measure(contender.command, run_folder, rounds, contender.environment))
            print(f"{name} {repeat + 1}/{repeats}: {runs[name][-1].wall_s:.1f} s", file=sys.stderr, flush=True)
    return runs


def difference(work: Work, folder: Path, site: Site, repeats: int) -> float:
    """The greatest between the final adapter of one of our runs in FLARE and that of the oracle."""
    experiment = work.experiment(folder / "work")
    expected = federate(make_trainer(experiment, site), load_sites(experiment, site, work.names)).tensors
    runs = [folder / "runs" / f"ours-{repeat}" / "workspace" / "server" / "simulate_job" for repeat in range(repeats)]
    return max(greatest_difference(load_adapter(run / FINAL)[0], expected) for run in runs)


if __name__ == "__main__":
    sys.exit(main())
