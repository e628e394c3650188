"""The site's account of what it has spent, which survives restarts and jobs. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from pt_peft import reasons, schema
from pt_peft.errors import OutsideLimits
from pt_peft.experiment.experiment import Experiment
from pt_peft.files import write_atomically
from pt_peft.privacy.accounting import Steps, epsilon
from pt_peft.privacy.plan import accountant_of, delta_of
from pt_peft.schema import Strict

FILE_NAME = "privacy_spent.json"


class Spent(Strict):
    """What one round of training cost."""

    job: str
    """The job's id."""
    continues: str | None
    """The job that this job continues, if any."""
    round: int
    """Counted from 0."""
    steps: tuple[Steps, ...]
    """The noisy steps of the round."""


class SpentFile(Strict):
    """The content of `FILE_NAME`."""

    spent: tuple[Spent, ...] = ()
    """All rounds of all jobs, in order."""


class Budget:
    """A site's account of all private jobs.

    The cost of a round is written before its training begins: what others saw of a training that broke off costs too.
    Jobs on the same images add up, so all jobs of the site share one account. The site's operator may remove the file
    when the images are others.
    """

    def __init__(self, folder: Path, job: str, continues: str | None):
        """Opens the account for one job.

        Args:
            folder: the site's workspace.
            job: the job's id.
            continues: the job that `job` continues, if any.
        """
        self._path = folder / FILE_NAME
        self._job, self._continues = job, continues

    def charge(self, experiment: Experiment, a_round: Sequence[Steps], number: int, limit: float | None) -> float:
        """Writes down the cost of a round that the site is about to train.

        Args:
            experiment: the job's.
            a_round: the noisy steps of the round.
            number: of the round, from 0.
            limit: ``limits.max_epsilon``. In its first round at the site a job has to fit with its remaining rounds,
                later with the one round.

        Returns:
            Epsilon of the job's rounds so far, with this one and those of the jobs that it continues.

        Raises:
            OutsideLimits: if the limit would be exceeded; nothing is then written.
            UserError: if the file is damaged, or the accountant cannot tell what is spent; nothing is then written.
            OSError: if it cannot be written; the site must then not train.
        """
        delta, accountant = delta_of(experiment), accountant_of(experiment)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._path}.lock"):
            file = schema.read(SpentFile, self._path) if self._path.exists() else SpentFile()
            begun = any(one.job == self._job for one in file.spent)
            rounds = 1 if begun else experiment.federation.rounds - number
            earlier = [steps for one in file.spent for steps in one.steps]
            if limit is not None:
                total = epsilon([*earlier, *_times(rounds, a_round)], delta, accountant)
                if total > limit:
                    before = epsilon(earlier, delta, accountant)
                    what = "a further round" if begun else f"{rounds} round(s)"
                    raise OutsideLimits(
                        "max_epsilon",
                        f"{what}, with which its epsilon would be {total:.3g} at delta {delta:g}, of which "
                        f"{before:.3g} is spent already",
                        f"allowed: {limit:g}",
                    ).told_as(reasons.PrivacyBudget(total=total, spent=before, limit=limit))
            now = Spent(job=self._job, continues=self._continues, round=number, steps=tuple(a_round))
            file = SpentFile(spent=(*file.spent, now))
            # Before the file is written: the accountant may fail.
            of_the_job = epsilon(self._of_the_job(file), delta, accountant)
            write_atomically(self._path, (file.model_dump_json(indent=1) + "\n").encode())
        return of_the_job

    def _of_the_job(self, file: SpentFile) -> list[Steps]:
        came_from = {one.job: one.continues for one in file.spent}
        jobs: set[str] = set()
        job: str | None = self._job
        while job is not None and job not in jobs:
            jobs.add(job)
            # A job in which this site never trained has no entry: the chain then ends there.
            job = came_from.get(job)
        return [steps for one in file.spent if one.job in jobs for steps in one.steps]


def _times(rounds: int, steps: Sequence[Steps]) -> list[Steps]:
    return [one.model_copy(update={"count": rounds * one.count}) for one in steps]
