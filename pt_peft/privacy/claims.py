"""What may be said of the privacy of an adapter. Imports no torch."""

from collections.abc import Iterable, Mapping

from pt_peft.experiment.experiment import Experiment
from pt_peft.privacy.plan import client_epsilon


def claim(experiment: Experiment, rounds: Iterable[Mapping]) -> dict | None:
    """For the header of an adapter and the ledger; None if the experiment asks for no privacy.

    Args:
        rounds: those so far, with their ``sites``' reports (as JSON), as `metrics.json` has them.

    Returns:
        The settings of ``sample`` and ``client`` with their ``epsilon`` so far: of ``sample`` the greatest that a site has
        reported; of ``client`` that of the aggregates, and as ``epsilon_of_own_noise`` the greatest that a site's own noise
        alone amounts to, which is what a curious server is up against. They are null where the noise is not secret.
    """
    privacy = experiment.privacy
    if not privacy.asked:
        return None
    rounds = list(rounds)
    reported = [
        report["epsilon"] for one in rounds for report in one["sites"].values() if report["epsilon"] is not None
    ]
    by_sites = max(reported, default=None)
    said = privacy.model_dump(mode="json")
    if privacy.sample:
        said["sample"]["epsilon"] = by_sites
    if privacy.client:
        said["client"]["epsilon"] = client_epsilon(experiment, len(rounds))
        said["client"]["epsilon_of_own_noise"] = None if privacy.sample else by_sites
    return said
