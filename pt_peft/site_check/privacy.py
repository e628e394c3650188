"""The privacy budget that a job will spend at the site."""

from pt_peft.errors import OutsideLimits, UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import stages
from pt_peft.privacy.accounting import epsilon
from pt_peft.privacy.plan import accountant_of, delta_of, plan
from pt_peft.site_check.findings import LIMITS, Findings
from pt_peft.site_check.report import PrivacyCost


def privacy_cost(experiment: Experiment, site: Site, images: int, findings: Findings) -> PrivacyCost | None:
    """The privacy loss of all rounds and releases, by the site's own noise, without what earlier jobs have spent.

    Args:
        experiment: the experiment.
        site: its limits bound the budget.
        images: number of training images.
        findings: takes the problems.

    Returns:
        None if sites add no noise that protects images, or if the loss cannot be computed.
    """
    if not (images and experiment.privacy.claimed and experiment.privacy.by_sites):
        return None
    try:
        delta = delta_of(experiment)
        released = sum(stage.name == "moments" for stage in stages(experiment))
        planned = plan(experiment, images, experiment.federation.rounds, released)
        spent = epsilon(planned.steps, delta, accountant_of(experiment))
    except UserError as error:
        findings.error("privacy", str(error))
        return None
    limit = site.limits.max_epsilon
    if limit is not None and spent > limit:
        asked = f"an epsilon of {spent:.3g} at delta {delta:g} with {planned}"
        refused = OutsideLimits("max_epsilon", asked, f"allowed: {limit:g}, less what earlier jobs have spent")
        findings.error(LIMITS, str(refused))
    return {"epsilon": spent, "delta": delta, "rounds": planned.rounds, "releases": planned.releases}
