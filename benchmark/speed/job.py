"""Measures a committed job as a new user runs it: ``nvflare simulator jobs/lora_vpt``.

FLARE then runs one site at a time, in a process that it starts again for each task.

    python -m benchmark.speed.job [--job jobs/lora_vpt] [--repeats 3] [--out benchmark/results/speed_job.json]
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmark.measurements.options import parse_with_repeats
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import finish
from benchmark.speed.contenders import HOOKS, fresh
from benchmark.speed.measure import ROOT, executable, measure, python_path
from pt_peft.commands.dispatch import command
from pt_peft.experiment.experiment import Experiment

JOB = ROOT / "jobs" / "lora_vpt"
OUT = Path("benchmark/results/speed_job.json")


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.job", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", type=Path, default=JOB, help="job folder (default: jobs/lora_vpt)")
    options = parse_with_repeats(parser, arguments, repeats=3, out=OUT)
    rounds = Experiment.read(options.job / "app" / "config" / "experiment.json").federation.rounds
    origin, run = provenance(), [executable("nvflare"), "simulator", str(options.job.resolve())]
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        found = [
            measure(run, fresh(Path(temporary) / str(repeat)), rounds, python_path(HOOKS))
            for repeat in range(options.repeats)
        ]
    result = {
        "job": options.job.name,
        "wall_s": statistics.median(one.wall_s for one in found),
        "runs": [asdict(one) for one in found],
    }
    finish(options, {**origin, **result}, f"{options.job.name}: {result['wall_s']:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
