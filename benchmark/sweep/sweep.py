"""Runs what a suite lacks: first the trials that choose learning rates, then the cells and their baselines."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from distributed import Client, as_completed
from distributed.scheduler import KilledWorker
from filelock import FileLock, Timeout
from tqdm import tqdm

from benchmark.sweep.cells import Cell, Grid
from benchmark.sweep.cluster import default_jobs, most_jobs, workers
from benchmark.sweep.initial_models import initial_weights
from benchmark.sweep.result_files import read_run, read_tuning, with_defaults
from benchmark.sweep.runs import Result, blank, run_cell
from benchmark.sweep.suite import Suite
from benchmark.sweep.trials import best
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.files import write_atomically
from pt_peft.schema import read_json
from pt_peft.seeds import derive_seed

TUNING = "tuning.json"


class Sweep:
    """A suite, and the folder that its results are in."""

    def __init__(self, suite: Suite, folder: Path, engine: str, verify: int):
        """Args:
        verify: how many federated cells are run by both engines.
        """
        self._suite = suite
        self._folder = folder
        self._engine = engine
        self._verify = verify

    def run(self, jobs: int | None, address: str | None, wanted: Callable[[Mapping], bool]) -> None:
        """Runs the cells whose axes are `wanted` and that have no finished result yet.

        Args:
            jobs: cells at a time on this machine; None: as many as it has cores and memory for.
            address: of a Dask scheduler whose workers run the cells instead.

        Raises:
            UserError: if the suite cannot be run, another process is running it, or cells have failed.
        """
        if self._folder.exists() and not self._folder.is_dir():
            raise UserError(f"--out: {self._folder} is not a folder.")
        if jobs and address is None and jobs > (most := most_jobs(self._suite, self._engine)):
            raise UserError(f"--jobs is {jobs}, but the free memory bears {most} at a time.")
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._folder / ".lock", blocking=False):
                self._run(jobs, address, wanted)
        except Timeout:
            raise UserError(f"{self._folder}: another process is writing its results there.") from None

    def _run(self, jobs: int | None, address: str | None, wanted: Callable[[Mapping], bool]) -> None:
        cache_folder = Site().cache_folder()
        suite = self._suite
        if not any(wanted(place) for place in suite.places()):
            raise UserError(f"--only: the suite '{suite.name}' has no cell with all of these values.")
        read_tuning(self._folder / TUNING)  # damaged, it would stop the sweep after hours
        weights = {
            name: initial_weights(name, model, suite.defaults, cache_folder)
            for name, model in suite.backbones.items()
            if any(wanted({**place, "backbone": name}) for place in suite.places() if place["backbone"] == name)
        }
        grid = Grid(
            suite.model_copy(update={"backbones": {name: suite.backbones[name] for name in weights}}),
            weights,
            cache_folder,
        )
        choices = [choice for choice in grid.tuning() if wanted(_without(choice[0], "partition"))]
        trials = [cell for _, _, cells in choices for cell in cells]
        with ExitStack() as stack:

            @cache
            def client() -> Client:
                """Only once there is something to do."""
                return stack.enter_context(workers(jobs or default_jobs(suite, self._engine), address))

            self._finish(client, trials, "tuning")
            chosen = [self._choice(*choice) for choice in choices]
            if chosen:
                self._write_choices(chosen)
            cells = [cell for cell in grid.runs(chosen) if wanted(cell.axes)]
            self._finish(client, cells, "cells")
        failed = [cell for cell in cells if not self._is_finished(cell)]
        unchosen = [one for one in chosen if one["chosen"] is None]
        if unchosen:
            axes = unchosen[0]["axes"]
            reason = self._reason(next(cells[0] for of_axes, _, cells in choices if of_axes == axes))
            raise UserError(f"{len(unchosen)} methods have no trial that finished; the first, {axes}: {reason}")
        if failed:
            raise UserError(
                f"{len(failed)} of {len(cells)} cells failed; the first, '{failed[0].name}': {self._reason(failed[0])}"
            )

    def _finish(self, client: Callable[[], Client], cells: Sequence[Cell], what: str) -> None:
        """Runs those of `cells` that are not finished, and writes what comes of each as it ends."""
        verified = self._verified(cells)
        pending = [cell for cell in cells if not self._is_finished(cell, cell.name in verified)]
        futures = {
            client().submit(
                run_cell, cell, self._engine, cell.name in verified, key=f"{cell.name}-{index}", pure=False
            ): cell
            for index, cell in enumerate(pending)
        }
        failed = 0
        with tqdm(
            total=len(cells), initial=len(cells) - len(pending), desc=what, unit="cell", disable=None
        ) as progress:
            for future in as_completed(futures) if futures else ():
                cell = futures.pop(future)
                try:
                    result = future.result()
                except KilledWorker:
                    reason = (
                        "the process that ran it was killed, and so was the next; its memory may have been too small"
                    )
                    result = Result(blank(cell, self._engine) | {"reason": reason})
                except Exception as error:  # Dask's own, of a worker that lacks this code, for one
                    result = Result(blank(cell, self._engine) | {"reason": f"{type(error).__name__}: {error}"})
                self._write(cell, result)
                failed += result.record["status"] != "finished"
                progress.set_postfix(failed=failed)
                progress.update()
                future.release()

    def _verified(self, cells: Iterable[Cell]) -> set[str]:
        """Names of the federated cells that are drawn to be run by both engines; the same for every call."""
        names = [cell.name for cell in cells if cell.kind == "cells"]
        return set(sorted(names, key=lambda name: derive_seed(0, "verify", name))[: self._verify])

    def _choice(self, axes: dict, trials: Sequence, cells: Sequence[Cell]) -> dict:
        """What came of the trials."""
        tried = []
        for trial, cell in zip(trials, cells, strict=True):
            run = read_run(self._path(cell), cell.kind)
            tried.append(
                {
                    "learning_rate": trial.learning_rate,
                    "head_learning_rate": cell.experiment.training.head_learning_rate,
                    "options": trial.options,
                    "status": run.status,
                    "val": run.final.val.mean.value(cell.experiment.select_by) if run.final else None,
                }
            )
        chosen = best([one["val"] for one in tried])
        return {"axes": axes, "budget": len(tried), "trials": tried, "chosen": chosen}

    def _write_choices(self, chosen: list[dict]) -> None:
        """In place of those of the same axes, beside those of parts of the suite that ran before."""
        path = self._folder / TUNING
        before = read_json(path) if path.exists() else []
        axes = [one["axes"] for one in chosen]
        kept = [one for one in before if one["axes"] not in axes]
        write_atomically(path, (json.dumps(kept + chosen, indent=1) + "\n").encode())

    def _path(self, cell: Cell) -> Path:
        return self._folder / cell.kind / f"{cell.name}.json"

    def _reason(self, cell: Cell) -> str | None:
        return read_run(self._path(cell), cell.kind).reason

    def _is_finished(self, cell: Cell, verified: bool = False) -> bool:
        """Whether there is a finished result of this very experiment by this engine, which the report can read.

        Args:
            verified: whether it has to have been run by both engines.
        """
        path = self._path(cell)
        try:
            run = read_run(path, cell.kind)
            record = read_json(path)
        except UserError:  # none, or damaged
            return False
        if run.status != "finished" or (verified and not record["verification"]):
            return False
        same = with_defaults(record.get("experiment")) == cell.experiment.model_dump(mode="json")
        return same and record.get("engine") == self._engine

    def _write(self, cell: Cell, result: Result) -> None:
        path = self._path(cell)
        path.parent.mkdir(exist_ok=True)
        if result.predictions is not None:  # first: a result is finished when its JSON says so
            write_atomically(path.with_suffix(".npz"), result.predictions)
        write_atomically(path, (json.dumps(result.record, indent=1) + "\n").encode())


def _without(axes: Mapping, name: str) -> dict:
    return {axis: value for axis, value in axes.items() if axis != name}
