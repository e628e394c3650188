"""What an experiment may not ask for together with encryption: the server can only add ciphertexts up."""

from typing import TYPE_CHECKING

from pt_peft.exchange.codecs import Payload

if TYPE_CHECKING:
    from pt_peft.experiment.experiment import Experiment


def unreadable_by_server(experiment: "Experiment") -> str | None:
    """The first thing for which the server would have to read what the sites send; None if nothing does."""
    if experiment.encryption is None:
        return None
    aggregation, optimizer, client = experiment.aggregation, experiment.server_optimizer.name, experiment.privacy.client
    asks = {
        f"aggregation 'mean', not '{aggregation.name}', which compares or changes the sites' tensors": aggregation.name
        != "mean",
        "aggregation.weighting 'samples' or 'uniform', not 'inverse_variance'": (
            getattr(aggregation, "weighting", None) == "inverse_variance"
        ),
        f"server_optimizer 'none', not '{optimizer}', which needs to read the mean": optimizer != "none",
        "training.control_variates false, whose steps at the server are not made for it": experiment.training.control_variates,
        "privacy.client.where 'sites', not 'server', which would have to clip what it cannot read": (
            client is not None and client.where == "server"
        ),
        "payload float32 both ways: what is written for the way is ciphertexts": experiment.payload != Payload(),
        "federation.lora_ranks empty: tensors of sites that differ in shape do not add up": bool(
            experiment.federation.lora_ranks
        ),
    }
    needed = next((needed for needed, is_asked in asks.items() if is_asked), None)
    return needed and f"encryption, with which the server can only add, needs {needed}"
