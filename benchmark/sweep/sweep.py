"""Runs what a suite lacks: first the trials that choose settings, then the cells and their baselines."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from distributed import Client, Future, as_completed
from distributed.scheduler import KilledWorker
from tqdm import tqdm

from benchmark.sweep.cells import Cell, Grid
from benchmark.sweep.cluster import default_jobs, most_jobs, workers
from benchmark.sweep.initial_models import initial_weights
from benchmark.sweep.records import (
    AnyRun,
    CellRecord,
    ChoiceAxes,
    ChoiceRecord,
    Engine,
    FailureRecord,
    SuiteRecord,
    TrialRecord,
    TriedSettings,
    metric_of,
)
from benchmark.sweep.result_file import ResultFile
from benchmark.sweep.runs import failure, run_cell
from benchmark.sweep.suite import Suite
from benchmark.sweep.trials import Settings, best, further
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.files import check_place
from pt_peft.seeds import derive_seed

Wanted = Callable[[dict[str, object]], bool]
"""Whether a place of the grid, by the values of some of its axes, is to be run."""


class Sweep:
    """A suite, and the file that its results are in."""

    def __init__(self, suite: Suite, path: Path, engine: Engine, verify: int, *, compiled: bool = False):
        """Starts nothing yet.

        Args:
            suite: what is run.
            path: of its result file.
            engine: what runs it.
            verify: how many federated cells are run by both engines.
            compiled: whether training steps run through torch's compiler.
        """
        self._suite = suite
        self._path = path
        self._engine: Engine = engine
        self._verify = verify
        self._compiled = compiled

    def run(self, jobs: int | None, address: str | None, wanted: Wanted) -> None:
        """Runs the cells that are `wanted` and have no finished result yet.

        Args:
            jobs: cells at a time on this machine; None: as many as it has cores and memory for.
            address: of a Dask scheduler whose workers run the cells instead.
            wanted: a part of the suite.

        Raises:
            UserError: if the suite cannot be run, another process is running it, or cells have failed.
        """
        check_place(self._path)
        if jobs and address is None and jobs > (most := most_jobs(self._suite, self._engine)):
            raise UserError(f"--jobs is {jobs}, but the free memory is enough for {most} at a time.")
        if not any(wanted(dict(place)) for place in self._suite.places()):
            raise UserError(_none_wanted(self._suite))
        header = SuiteRecord(name=self._suite.name, suite=self._suite.model_dump(mode="json"))
        with ResultFile.open(self._path, header) as results, ExitStack() as stack:

            @cache
            def client() -> Client:
                """Started only once there is something to do."""
                return stack.enter_context(workers(jobs or default_jobs(self._suite, self._engine), address))

            _Pass(self._suite, results, self._engine, self._verify, client).run(self.grid(wanted), wanted)

    def grid(self, wanted: Wanted) -> Grid:
        """The grid with those backbones that are `wanted`. Raises UserError."""
        suite, cache_folder = self._suite, Site().cache_folder()
        backbones = {place["backbone"] for place in suite.places() if wanted(dict(place))}
        weights = {
            name: initial_weights(name, model, suite.defaults, cache_folder)
            for name, model in suite.backbones.items()
            if name in backbones
        }
        part = suite.model_copy(update={"backbones": {name: suite.backbones[name] for name in weights}})
        return Grid(part, weights, cache_folder, compiled=self._compiled)


def _none_wanted(suite: Suite) -> str:
    return f"--only: the suite '{suite.name}' has no cell with all of these values."


class _Pass:
    """One call: runs what is missing, while the result file is open."""

    def __init__(self, suite: Suite, results: ResultFile, engine: Engine, verify: int, client: Callable[[], Client]):
        self._suite = suite
        self._results = results
        self._engine: Engine = engine
        self._verify = verify
        self._client = client

    def run(self, grid: Grid, wanted: Wanted) -> None:
        """Raises UserError, after the last cell if any failed."""
        tried = self._tried(grid, wanted)
        choices = [self._choice(axes, settings, cells) for axes, (settings, cells) in tried.items()]
        for choice in choices:
            if self._results.contents.choices.get(choice.axes) != choice:
                self._results.append(choice)
        cells = [cell for cell in grid.runs(choices) if wanted(cell.axes.model_dump())]
        self._finish(cells, "cells")
        self._check_choices(choices, [cells for _, cells in tried.values()])
        if not cells:
            raise UserError(_none_wanted(self._suite))
        failed = [(cell, reason) for cell in cells if (reason := self._reason(cell)) is not None]
        if failed:
            cell, reason = failed[0]
            raise UserError(f"{len(failed)} of {len(cells)} cells failed; the first, '{cell.name}': {reason}")

    def _tried(self, grid: Grid, wanted: Wanted) -> dict[ChoiceAxes, tuple[list[Settings], list[Cell]]]:
        """Runs the trials of each choice, further ones where the best rate lies at an end. Raises UserError."""
        first = {axes: rates for axes, rates in grid.tuning() if wanted(axes.model_dump(exclude={"partition"}))}
        tried = {axes: (list(settings), grid.trials(axes, settings)) for axes, settings in first.items()}
        pending = [cell for _, cells in tried.values() for cell in cells]
        while pending and self._suite.tuning:
            self._finish(pending, "trials")
            pending = []
            for axes, (settings, cells) in tried.items():
                values = [self._validation(cell) for cell in cells]
                if more := further(self._suite.tuning, first[axes], settings, values):
                    settings.append(more)
                    cells.append(grid.trials(axes, settings)[-1])
                    pending.append(cells[-1])
        return tried

    def _finish(self, cells: Sequence[Cell], what: str) -> None:
        """Runs those of `cells` that are not finished, and records each as it ends."""
        verified = self._verified(cells)
        pending = [cell for cell in cells if not self._is_finished(cell, cell.name in verified)]
        futures = {
            self._client().submit(
                run_cell, cell, self._engine, cell.name in verified, key=f"{cell.name}-{index}", pure=False
            ): cell
            for index, cell in enumerate(pending)
        }
        done, failed = len(cells) - len(pending), 0
        try:
            with tqdm(total=len(cells), initial=done, desc=what, unit="cell", disable=None) as progress:
                for future in as_completed(futures) if futures else ():
                    cell = futures.pop(future)
                    record = self._record(cell, future)
                    self._results.append(record)
                    done += 1
                    failed += isinstance(record, FailureRecord)
                    progress.set_postfix(failed=failed)
                    progress.update()
                    if progress.disable:  # no terminal
                        ends = " failed" if isinstance(record, FailureRecord) else ""
                        print(f"{what}: {cell.name}{ends} ({done} of {len(cells)})", file=sys.stderr, flush=True)
                    future.release()
        except KeyboardInterrupt:
            left = f"{done - failed} of {len(cells)} {what} are finished"
            print(f"{left}; the same command goes on with the others.", file=sys.stderr)
            raise

    def _record(self, cell: Cell, future: Future) -> AnyRun:
        """What came of `cell`."""
        try:
            return future.result()
        except KilledWorker:
            reason = "the process that ran it was killed, and so was the next; it may have needed more memory"
            return failure(cell, self._engine, reason)
        except Exception as error:  # Dask's own, for example of a worker that lacks this code
            return failure(cell, self._engine, f"{type(error).__name__}: {error}")

    def _verified(self, cells: Iterable[Cell]) -> set[str]:
        """Names of the federated cells that both engines run, drawn at random; the same for every call."""
        names = [cell.name for cell in cells if cell.kind == "cell"]
        return set(sorted(names, key=lambda name: derive_seed(0, "verify", name))[: self._verify])

    def _choice(self, axes: ChoiceAxes, tried: Sequence[Settings], cells: Sequence[Cell]) -> ChoiceRecord:
        values = [self._validation(cell) for cell in cells]
        settings = [
            TriedSettings(
                learning_rate=one.learning_rate,
                head_learning_rate=cell.experiment.training.head_learning_rate,
                options=one.options,
                val=value,
            )
            for one, cell, value in zip(tried, cells, values, strict=True)
        ]
        return ChoiceRecord(axes=axes, trials=settings, chosen=best(values))

    def _validation(self, cell: Cell) -> float | None:
        record = self._results.contents.runs[cell.name]
        return metric_of(record.val.judged, cell.experiment.select_by) if isinstance(record, TrialRecord) else None

    def _check_choices(self, choices: Sequence[ChoiceRecord], trials: Sequence[Sequence[Cell]]) -> None:
        """Raises UserError if a method has nothing to choose from."""
        without = [(one, cells) for one, cells in zip(choices, trials, strict=True) if one.chosen is None]
        if without:
            choice, cells = without[0]
            place = ", ".join(choice.axes.model_dump().values())
            raise UserError(
                f"{len(without)} methods have no trial that finished; the first, {place}: {self._reason(cells[0])}"
            )

    def _reason(self, cell: Cell) -> str | None:
        """Why `cell` failed; None if it is finished."""
        record = self._results.contents.runs[cell.name]
        return record.reason if isinstance(record, FailureRecord) else None

    def _is_finished(self, cell: Cell, verified: bool) -> bool:
        """Whether there is a finished result of this very experiment, on images of this meaning, by this engine.

        Args:
            cell: what was to be run.
            verified: whether it has to have been run by both engines.
        """
        record = self._results.contents.runs.get(cell.name)
        if record is None or record.kind != cell.kind:
            return False
        if verified and not (isinstance(record, CellRecord) and record.verification):
            return False
        same = cell.experiment.model_dump(mode="json"), cell.site.data.meaning()
        return record.engine == self._engine and (record.experiment, record.site_data) == same
