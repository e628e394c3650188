"""Experiments from one that gives an image away to the shipped ones: an audit must find the first and not the last."""

import re
from dataclasses import dataclass

from benchmark.reconstruction.audit import PAYLOAD, Subject
from pt_peft.presets import override, preset

SITES = ("site-1", "site-2")
_WHOLE = "backbone.kwargs.patch_size=32"
"""The whole image is one patch; the weights are resampled to it."""
_VARIATES = "training.control_variates=true"
_STEPS = "training.local_epochs=8"


@dataclass(frozen=True)
class Rung:
    """One experiment: the demo of a method, changed."""

    name: str
    method: str
    images: int | None
    """Training images of a site, of 32 pixels and not augmented; None for the demo as it is."""
    changes: tuple[str, ...] = ()
    """Assignments, as `pt_peft.presets.override` takes them."""

    def subject(self) -> Subject:
        """The experiment. Raises UserError if it is not valid."""
        experiment, site = preset(self.method)
        name = re.sub(r"[^a-z0-9_]+", "_", self.name)
        changes = [f"name={name}", *self.changes]
        if self.images is None:
            return Subject(self.name, override(experiment, changes), site, SITES)
        changes += [
            "backbone.image_size=32",
            f'data.images_per_site={{"train":{self.images},"val":64,"test":256}}',
            "data.augment=[]",
            f"training.batch_size={self.images}",
        ]
        return Subject(self.name, override(experiment, changes), site, SITES, (PAYLOAD,))


LADDER = (
    Rung("one patch", "full", 1, (_WHOLE, _VARIATES)),
    Rung("one patch in 8 steps", "full", 1, (_WHOLE, _VARIATES, _STEPS)),
    Rung("one patch of 4 images", "full", 4, (_WHOLE, _VARIATES)),
    Rung("one patch of 32 images", "full", 32, (_WHOLE, _VARIATES)),
    Rung("one patch without variates", "full", 1, (_WHOLE,)),
    Rung("16 patches", "full", 1, (_VARIATES,)),
    Rung("16 patches in 8 steps", "full", 1, (_VARIATES, _STEPS)),
    Rung("16 patches of 4 images", "full", 4, (_VARIATES,)),
    Rung("16 patches without variates", "full", 1),
    Rung("lora with variates", "lora", 1, (_VARIATES,)),
    Rung("lora with variates in 8 steps", "lora", 1, (_VARIATES, _STEPS)),
    Rung("lora", "lora", 1),
    Rung("vpt_deep with variates", "vpt_deep", 1, (_VARIATES,)),
    Rung("linear_probe with variates", "linear_probe", 1, (_VARIATES,)),
    Rung("linear_probe", "linear_probe", 1),
    Rung("lora_vpt", "lora_vpt", 1),
    Rung("lora_vpt on 50 images", "lora_vpt", 50),
    *(Rung(f"demo {method}", method, None) for method in ("lora_vpt", "linear_probe", "full", "vpt_deep", "lora")),
)
"""From the worst on."""
