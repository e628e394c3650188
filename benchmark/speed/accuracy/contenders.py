"""The contenders: how each is run, where it keeps its aggregate, and how that is evaluated."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark.speed.accuracy.plain import AGGREGATE
from benchmark.speed.accuracy.task import Evaluate, Sections, Task, load_checkpoint, load_trained
from benchmark.speed.contenders import HOOKS, simulator
from benchmark.speed.measure import ROOT, python_path
from benchmark.sweep.suite import overlaid
from pt_peft_flare.job_folder import write_job, write_workspace
from pt_peft_flare.persistor import FINAL

SERVER = Path("workspace/server/simulate_job")
LEVERLESS: Sections = {"training": {"imbalance": "weighted_loss", "precision": "float32"}}
"""Our training without a lever: what the contenders in plain PyTorch do."""
LEVERS: dict[str, Callable[[int], Sections]] = {
    "balanced": lambda blocks: {"training": {"imbalance": "balanced_softmax"}},
    "statistics": lambda blocks: {"head": {"start": "ridge", "finish": "ridge"}},
    "last_blocks": lambda blocks: {
        "method": {"options": {"lora": {"last_blocks": blocks}, "vpt_deep": {"last_blocks": blocks}}}
    },
    "bfloat16": lambda blocks: {"training": {"precision": "bfloat16"}},
}
"""What is changed by each lever, from the number of last blocks."""


@dataclass(frozen=True)
class Contender:
    """A way to do the task."""

    what: str
    """In words."""
    prepare: Callable[[Path], None]
    """Called before each run with its folder."""
    command: list[str]
    environment: dict[str, str]
    aggregate: Path
    """Where in the folder of a run the aggregate is, replaced after each round."""
    evaluate: Callable[[], Evaluate]


def contenders(task: Task, blocks: int) -> dict[str, Contender]:
    """All contenders, by name.

    Args:
        task: what they do.
        blocks: number of the last blocks that are trained where not all are.
    """
    levers = {name: lever(blocks) for name, lever in LEVERS.items()}
    together: Sections = {}
    for lever in (*levers.values(), {"training": {"precision": "auto"}}):
        together = overlaid(dict(together), dict(lever))
    return {
        "plain": Contender(
            "plain loop in one process",
            lambda folder: None,
            [sys.executable, "-m", "benchmark.speed.accuracy.plain", str(task.folder)],
            python_path(),
            Path(AGGREGATE),
            lambda: task.evaluate_theirs(load_trained),
        ),
        "stock_whole": _stock(task, "whole", "stock FLARE, `model.state_dict()`"),
        "stock_half": _stock(task, "whole", "… at half the learning rate", rate_factor=0.5),
        "stock_trained": _stock(task, "trained", "stock FLARE, the trained tensors alone"),
        "ours": _ours(task, {}, "ours, as the preset trains (without its ridge head)"),
        "leverless": _ours(task, LEVERLESS, "ours, weighted loss and float32"),
        "balanced": _ours(task, overlaid(dict(LEVERLESS), dict(levers["balanced"])), "… with balanced softmax"),
        "statistics": _ours(task, overlaid(dict(LEVERLESS), dict(levers["statistics"])), "… with a ridge head"),
        "last_blocks": _ours(
            task, overlaid(dict(LEVERLESS), dict(levers["last_blocks"])), f"… in the last {blocks} blocks"
        ),
        "bfloat16": _ours(task, overlaid(dict(LEVERLESS), dict(levers["bfloat16"])), "… in bfloat16"),
        "all": _ours(task, together, "ours, all of these (`auto` precision)"),
    }


def _stock(task: Task, sends: str, what: str, rate_factor: float = 1.0) -> Contender:
    def prepare(folder: Path) -> None:
        command = [sys.executable, "-m", "benchmark.speed.accuracy.stock_job"]
        command += [str(task.folder), str(folder), sends, str(rate_factor)]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)

    return Contender(
        what,
        prepare,
        [*simulator("stock", len(task.sites), len(task.sites)), "-c", ",".join(task.sites)],
        python_path(),
        SERVER / "app_server" / "FL_global_model.pt",
        lambda: task.evaluate_theirs(load_checkpoint),
    )


def _ours(task: Task, sections: Sections, what: str) -> Contender:
    def prepare(folder: Path) -> None:
        # Features of frozen blocks are the run's own work; decoded images are not.
        for kept in (task.folder / "cache").glob("*/features.npy"):
            shutil.rmtree(kept.parent)
        write_job(task.with_fields(sections), folder / "job")
        write_workspace(task.site, folder / "workspace")

    return Contender(
        what,
        prepare,
        simulator("job", len(task.sites), len(task.sites)),
        python_path(HOOKS),
        SERVER / FINAL,
        partial(task.evaluate_ours, sections),
    )
