"""The site's account of what it has spent, which survives restarts and jobs. Imports no torch."""

from pathlib import Path

from filelock import FileLock

from pt_peft import reasons, schema
from pt_peft.errors import OutsideLimits
from pt_peft.experiment.experiment import Experiment
from pt_peft.files import write_atomically
from pt_peft.privacy.accounting import Steps, epsilon
from pt_peft.privacy.plan import Plan, accountant_of, delta_of
from pt_peft.schema import Strict

FILE_NAME = "privacy_spent.json"


class Spent(Strict):
    """What one round of training, or one release of sums of features, cost."""

    job: str
    """The job's id."""
    continues: str | None
    """The job that this job continues, if any."""
    round: int
    """Counted from 0; of a release the number of the rounds before it."""
    steps: tuple[Steps, ...]
    """Its noisy steps."""


class SpentFile(Strict):
    """The content of `FILE_NAME`."""

    spent: tuple[Spent, ...] = ()
    """Those of all jobs, in order."""


class Budget:
    """A site's account of all private jobs.

    A cost is written before the work begins: what others saw of a training that broke off costs too.
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

    def charge(self, experiment: Experiment, now: Plan, ahead: Plan, number: int, limit: float | None) -> float:
        """Writes down the cost of a round or a release that the site is about to make.

        Args:
            experiment: the job's.
            now: the one round or release.
            ahead: it, and all that the job may ask for after it.
            number: of the rounds before it.
            limit: ``limits.max_epsilon``. What a job asks for first at the site has to fit with all that is `ahead`,
                later by itself.

        Returns:
            Epsilon of the job so far, with this and with the jobs that it continues.

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
            asked = now if begun else ahead
            earlier = [steps for one in file.spent for steps in one.steps]
            if limit is not None:
                total = epsilon([*earlier, *asked.steps], delta, accountant)
                if total > limit:
                    before = epsilon(earlier, delta, accountant)
                    raise OutsideLimits(
                        "max_epsilon",
                        f"{asked}{' more' if begun else ''}, with which its epsilon would be {total:.3g} at delta "
                        f"{delta:g}, of which {before:.3g} is spent already",
                        f"allowed: {limit:g}",
                    ).told_as(reasons.PrivacyBudget(total=total, spent=before, limit=limit))
            spent = Spent(job=self._job, continues=self._continues, round=number, steps=tuple(now.steps))
            file = SpentFile(spent=(*file.spent, spent))
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
