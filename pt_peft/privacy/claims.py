"""What an adapter's header claims about privacy. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from pt_peft.experiment.experiment import Experiment
from pt_peft.privacy.plan import client_epsilon


def claim(experiment: Experiment, rounds: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The privacy claim of an adapter; None if the experiment asks for no privacy.

    Args:
        experiment: that the adapter was trained in.
        rounds: all rounds so far with the ``sites``' reports, as `metrics.json` has them.

    Returns:
        The settings of ``sample`` and ``client`` with their ``epsilon`` so far. ``sample`` has the greatest that a site
        has reported. ``client`` has that of the aggregates, and as ``epsilon_of_own_noise`` the greatest that a site's
        own noise alone amounts to, which protects it from a curious server. They are null where the noise is not
        secret.
    """
    privacy = experiment.privacy
    if not privacy.asked:
        return None
    count, by_sites = 0, None
    for one in rounds:
        count += 1
        reported = [report["epsilon"] for report in one["sites"].values()]
        by_sites = max((epsilon for epsilon in (by_sites, *reported) if epsilon is not None), default=None)
    said = privacy.model_dump(mode="json")
    if privacy.sample:
        said["sample"]["epsilon"] = by_sites
    if privacy.client:
        said["client"]["epsilon"] = client_epsilon(experiment, count)
        said["client"]["epsilon_of_own_noise"] = None if privacy.sample else by_sites
    return said
