"""What an adapter's header claims about privacy. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from pt_peft.experiment.experiment import Experiment
from pt_peft.privacy.plan import client_epsilon


def claim(
    experiment: Experiment, rounds: Iterable[Mapping[str, Any]], statistics: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any] | None:
    """The privacy claim of an adapter; None if the experiment asks for no privacy.

    Args:
        experiment: that the adapter was trained in.
        rounds: all rounds so far with the ``sites``' reports, as `metrics.json` has them.
        statistics: all stages of statistics so far, likewise.

    Returns:
        The settings of ``sample``, ``statistics`` and ``client`` with their ``epsilon`` so far. The first two have the
        greatest that a site has reported, which is that of both together. ``client`` has that of the aggregates, and as
        ``epsilon_of_own_noise`` the greatest that a site's own noise alone amounts to, which protects it from a curious
        server. They are null where the noise is not secret.
    """
    privacy = experiment.privacy
    if not privacy.asked:
        return None
    count, reported = 0, [epsilon for one in statistics for epsilon in _epsilons(one)]
    for one in rounds:  # read from a file, one by one
        count += 1
        reported += _epsilons(one)
    by_sites = max(reported, default=None)
    said = privacy.model_dump(mode="json")
    for name in ("sample", "statistics"):
        if said[name]:
            said[name]["epsilon"] = by_sites
    if privacy.client:
        said["client"]["epsilon"] = client_epsilon(experiment, count)
        said["client"]["epsilon_of_own_noise"] = None if privacy.sample else by_sites
    return said


def _epsilons(entry: Mapping[str, Any]) -> list[float]:
    """What the sites' reports of a round or a stage say was spent."""
    return [report["epsilon"] for report in entry["sites"].values() if report.get("epsilon") is not None]
