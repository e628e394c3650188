"""What a job's rounds will cost the site's budget of privacy."""

from pydantic import JsonValue

from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.privacy.accounting import epsilon
from pt_peft.privacy.plan import accountant_of, delta_of, steps_of_a_round
from pt_peft.site_check.findings import Findings


def privacy_cost(experiment: Experiment, site: Site, images: int, findings: Findings) -> JsonValue:
    """``epsilon`` and ``delta`` of all rounds for a site with so many training images, by its own noise, without what earlier jobs
    have spent; None where it adds none that counts, or where an error kept it from being found.
    """
    if not (images and experiment.privacy.claimed and experiment.privacy.by_sites):
        return None
    try:
        rounds, delta = experiment.federation.rounds, delta_of(experiment)
        spent = epsilon(rounds * steps_of_a_round(experiment, images), delta, accountant_of(experiment))
    except UserError as error:
        findings.error("privacy", str(error))
        return None
    limit = site.limits.max_epsilon
    if limit is not None and spent > limit:
        findings.error(
            "limits",
            f"the site refuses the job by field 'max_epsilon' of its limits: its {rounds} round(s) cost epsilon {spent:.3g} at delta "
            f"{delta:g}; allowed: {limit:g}, less what earlier jobs have spent.",
        )
    return {"epsilon": spent, "delta": delta, "rounds": rounds}
