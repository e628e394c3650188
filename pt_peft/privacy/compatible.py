"""What an experiment may not ask for together with privacy.

Whatever happens to gradients, updates or aggregates after the noise costs nothing: AdamW, weight decay, FedProx's pull,
SCAFFOLD's variates (means of gradients with their noise), the limit of LoRA's rank, server optimisers, any aggregation of what is private
for each image. Refused is what looks at the images, or at the sites, beside the noise.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pt_peft.experiment.experiment import Experiment


def broken_by(experiment: "Experiment") -> str | None:
    """The first thing that would break the guarantee; None if nothing does."""
    privacy, training = experiment.privacy, experiment.training
    if not privacy.asked:
        if privacy.randomness != "secret":
            return f"privacy.randomness is '{privacy.randomness}', but neither privacy.sample nor privacy.client is set"
        return None
    if privacy.sample and training.imbalance != "none":
        return (
            f"training.imbalance must be 'none' with privacy.sample, as it counts the labels of the images, without noise; "
            f"it is '{training.imbalance}'"
        )
    return _broken_for_sites(experiment) if privacy.client else None


def _broken_for_sites(experiment: "Experiment") -> str | None:
    aggregation, training = experiment.aggregation, experiment.training
    if aggregation.name != "mean" or aggregation.weighting != "uniform":
        asked = f"'{aggregation.name}'" + (
            f" with weighting '{aggregation.weighting}'" if aggregation.name == "mean" else ""
        )
        return (
            "aggregation must be 'mean' with weighting 'uniform' with privacy.client, whose noise is made for a sum in which "
            f"every site counts once; it is {asked}"
        )
    if training.control_variates:
        return (
            "training.control_variates must be false with privacy.client, as each site would send a second vector, its mean "
            "gradient, without noise; it is true"
        )
    if experiment.federation.lora_ranks:
        return (
            "federation.lora_ranks must be empty with privacy.client, as sites of a smaller rank add no noise to the components "
            "that they do not send"
        )
    return None
