"""The reference work, which all contenders do."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.sections import Precision
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.schema import parse

WEIGHTS = "weights.safetensors"
CLASSES = ("naevus", "melanoma", "basal_cell_carcinoma", "dermatofibroma")


@dataclass(frozen=True)
class Work:
    """Amount and kind of the work. The defaults are those of the published table."""

    sites: int = 3
    rounds: int = 5
    images: int = 256
    """Training images of a site; there are no others, so that nothing is evaluated."""
    image_size: int = 64
    """Side, pixels."""
    model: str = "vit_tiny_patch16_224"
    """Architecture, by its name in timm."""
    rank: int = 4
    """Rank of LoRA on qkv; 0 for no LoRA."""
    lora_alpha: int = 16
    """Scale of LoRA's update."""
    prompts: int = 10
    """Prompts in each block; 0 for none."""
    last_blocks: int | None = None
    """How many of the last blocks have LoRA; None for all."""
    batch_size: int = 32
    augment: bool = False
    """Whether images are mirrored and turned by right angles at random."""
    precision: Precision = "float32"
    """What the forward pass computes in."""
    compiled: bool = False
    """Whether our training steps run through torch's compiler."""

    @property
    def names(self) -> list[str]:
        """Names of the sites."""
        return [f"site-{number}" for number in range(1, self.sites + 1)]

    def experiment(self, folder: Path, **fields: object) -> Experiment:
        """Makes the experiment of our own run.

        Args:
            folder: to which `write` has written the weights.
            fields: sections that replace the work's own.
        """
        options: dict[str, dict[str, int | None]] = {}
        if self.rank:
            options["lora"] = {"rank": self.rank, "alpha": self.lora_alpha, "last_blocks": self.last_blocks}
        if self.prompts:
            options["vpt_deep"] = {"num_prompts": self.prompts}
        content = {
            "name": "speed",
            "backbone": {"name": self.model, "image_size": self.image_size, "sha256": sha256_of(folder / WEIGHTS)},
            "data": {
                "source": "lesions",
                "classes": CLASSES,
                "images_per_site": {"train": self.images},
                "augment": ["flip", "rotate90"] if self.augment else [],
            },
            "method": {"name": "+".join(options) or "linear_probe", "options": options},
            "training": {"batch_size": self.batch_size, "precision": self.precision},
            "federation": {"rounds": self.rounds, "sites": self.names, "min_sites": self.sites},
        }
        return parse(Experiment, {**content, **fields}, "benchmark.speed")

    def write(self, folder: Path) -> Site:
        """Writes random weights, every site's images, and the settings of `benchmark.speed.bare` to a new `folder`.

        Returns:
            The settings of our simulated sites.
        """
        import timm
        import torch
        from safetensors.torch import save_file

        from benchmark.oracle.reference import load_sites

        folder.mkdir(parents=True)
        torch.manual_seed(0)
        model = timm.create_model(self.model, img_size=self.image_size, num_classes=0)
        save_file(model.state_dict(), folder / WEIGHTS)
        site = Site(
            backbone=str((folder / WEIGHTS).resolve()),
            cache=str((folder / "cache").resolve()),
            limits=Limits.open(),
            compile=self.compiled,
        )
        for name, data in load_sites(self.experiment(folder), site, self.names).items():
            np.savez(folder / f"{name}.npz", images=data.train.images, labels=data.train.labels)
        about = {**asdict(self), "sites": self.names, "classes": len(CLASSES)}
        (folder / "work.json").write_text(json.dumps(about, indent=1))
        return site

    def raw_bytes(self, folder: Path) -> int:
        """Returns the bytes of the trained tensors, four a value: what has to travel in one direction, once."""
        from pt_peft.model.adapted_model import build_model

        model = build_model(self.experiment(folder).model, None)
        return sum(parameter.numel() * 4 for parameter in model.trained.values())
