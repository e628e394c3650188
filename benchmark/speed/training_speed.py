"""Measures local training alone: a site's round by our trainer and by bare PyTorch, alternating in one process.

    python -m benchmark.speed.training_speed [--repeats 5] [--out benchmark/results/speed_training.json]

The first round of each is a warm-up. In it our trainer computes the features that the frozen blocks make of the images,
of augmented images in all eight views, or compiles the model. The bare loop is never compiled.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmark.measurements.options import parse_with_repeats
from benchmark.measurements.provenance import provenance
from benchmark.measurements.results import finish, markdown_table
from benchmark.oracle.reference import load_sites, make_trainer
from benchmark.speed.bare import Bare
from benchmark.speed.work import Work
from pt_peft.commands.dispatch import command

OUT = Path("benchmark/results/speed_training.json")
WORKS = {
    "LoRA and prompts in all blocks": Work(),
    "LoRA and prompts in all blocks, bfloat16": Work(precision="bfloat16"),
    "LoRA and prompts in all blocks, compiled": Work(compiled=True),
    "LoRA and prompts in all blocks, bfloat16, compiled": Work(precision="bfloat16", compiled=True),
    "LoRA in all blocks": Work(prompts=0),
    "LoRA in the last 3 blocks": Work(prompts=0, last_blocks=3),
    "LoRA in the last block": Work(prompts=0, last_blocks=1),
    "linear probe": Work(prompts=0, rank=0),
    "LoRA in the last 3 blocks, augmented": Work(prompts=0, last_blocks=3, augment=True, rounds=12),
    "LoRA in the last block, augmented": Work(prompts=0, last_blocks=1, augment=True, rounds=12),
    "linear probe, augmented": Work(prompts=0, rank=0, augment=True, rounds=12),
}


def seconds_of_rounds(work: Work, folder: Path, repeats: int) -> dict[str, float]:
    """Measures rounds of one site on one thread.

    Args:
        work: what the site trains.
        folder: takes the work.
        repeats: rounds after the warm-up.

    Returns:
        Median seconds of a round, ``ours`` and ``bare``; ``bare_over_ours``; seconds of our ``first`` round.
    """
    site = work.write(folder)
    experiment = work.experiment(folder)
    trainer = make_trainer(experiment, site)
    (name, *_), data = work.names, load_sites(experiment, site, work.names)
    bare = Bare(folder, threads=torch.get_num_threads())
    images, labels = bare.images(name)
    taken: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(repeats + 1):
        started = time.perf_counter()
        trainer.train(name, data[name].train, trainer.initial, number % work.rounds)
        taken["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        bare.train(name, images, labels)
        taken["bare"].append(time.perf_counter() - started)
    medians = {who: statistics.median(seconds[1:]) for who, seconds in taken.items()}
    return {**medians, "first": taken["ours"][0], "bare_over_ours": medians["bare"] / medians["ours"]}


@command
def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options = parse_with_repeats(parser, arguments, repeats=5, out=OUT)
    origin, works = provenance(), dict[str, object]()
    header = ["a round of a site", "bare (s)", "ours (s)", "bare / ours", "our first round (s)"]
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        for index, (name, work) in enumerate(WORKS.items()):
            found = seconds_of_rounds(work, Path(temporary) / str(index), options.repeats)
            works[name] = {**found, "work": asdict(work)}
            lines.append([name, *(f"{found[key]:.3f}" for key in ("bare", "ours", "bare_over_ours", "first"))])
            print(*lines[-1], file=sys.stderr, flush=True)
    result = {**origin, "threads": 1, "works": works}
    finish(options, result, markdown_table(header, lines, texts=1))


if __name__ == "__main__":
    sys.exit(main())
