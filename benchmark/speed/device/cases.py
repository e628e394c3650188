"""What is trained for speed: architectures, methods, precisions and batch sizes, the most telling first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pt_peft.experiment.experiment import Experiment
from pt_peft.model.model_input import Precision
from pt_peft.schema import parse

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SPEED_CLASSES = CLASSES[:4]
"""Those for which `lesions` generates images, of which only sites have any."""
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {"lora": {"rank": 4}},
    "lora_vpt": {"lora": {"rank": 4}, "vpt_deep": {"num_prompts": 10}},
    "full": {},
}
"""The options of each method."""
TRAINING_OVER_FORWARD = 3.0
"""Floating-point operations of a training step over those of a forward pass, at most."""


@dataclass(frozen=True)
class Architecture:
    """A Vision Transformer at one image size."""

    name: str
    """In timm."""
    size: int
    """Side of an image, pixels."""
    width: int
    depth: int
    patch: int = 16
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of ``timm.create_model``."""

    @property
    def flops(self) -> float:
        """Floating-point operations of an image's forward pass."""
        tokens = (self.size // self.patch) ** 2 + 1
        block = 2 * tokens * 12 * self.width**2 + 4 * tokens**2 * self.width
        return self.depth * block + 2 * tokens * self.width * 3 * self.patch**2


ARCHITECTURES = {
    "ViT-Ti/16 at 224": Architecture("vit_tiny_patch16_224", 224, 192, 12),
    "ViT-Ti/16 at 96": Architecture("vit_tiny_patch16_224", 96, 192, 12),
    "ViT-B/16 at 224": Architecture("vit_base_patch16_224", 224, 768, 12),
    "ViT-L/16 at 224": Architecture("vit_large_patch16_224", 224, 1024, 24),
}


@dataclass(frozen=True)
class Case:
    """What both loops train."""

    model: str
    """A key of `ARCHITECTURES`."""
    method: str
    """A key of `METHODS`."""
    precision: Precision
    batch_size: int
    architecture: Architecture

    @property
    def name(self) -> str:
        """Unique among the cases."""
        return f"{self.model}, {self.method}, {self.precision}, batches of {self.batch_size}"

    def flops(self, images: int = 1) -> float:
        """Floating-point operations of training on `images`."""
        return TRAINING_OVER_FORWARD * self.architecture.flops * images

    def experiment(self, sha256: str, images: int, sites: tuple[str, ...] = ("site-1",)) -> Experiment:
        """Makes the experiment that our trainer takes.

        Args:
            sha256: of the weights file.
            images: of a site.
            sites: their names.
        """
        return parse(
            Experiment,
            {
                "name": "speed",
                "backbone": {
                    "name": self.architecture.name,
                    "kwargs": self.architecture.kwargs,
                    "image_size": self.architecture.size,
                    "sha256": sha256,
                },
                "data": {
                    "source": "lesions",
                    "classes": SPEED_CLASSES,
                    "images_per_site": {"train": images},
                    "augment": ["flip", "rotate90"],
                },
                "method": {"name": self.method, "options": METHODS[self.method]},
                "training": {"batch_size": self.batch_size, "precision": self.precision},
                "federation": {"rounds": 1000, "sites": sites, "min_sites": len(sites)},
            },
            "benchmark.speed.device",
        )


def cases() -> Iterator[Case]:
    """All cases, in their order: what a hospital is likeliest to train comes first."""

    def some(models: str, methods: str, batch_sizes: tuple[int, ...]) -> Iterator[Case]:
        for batch_size in batch_sizes:
            for method in methods.split():
                for model in models.split(", "):
                    architecture = ARCHITECTURES[model]
                    for precision in ("bfloat16", "float32"):
                        yield Case(model, method, precision, batch_size, architecture)

    tiny, base, large = "ViT-Ti/16 at 224", "ViT-B/16 at 224", "ViT-L/16 at 224"
    yield from some(f"{tiny}, {base}", "lora", (32,))
    yield from some("ViT-Ti/16 at 96", "lora", (32,))
    yield from some(f"{base}, {tiny}", "lora", (128,))
    yield from some(f"{base}, {tiny}", "lora_vpt full", (32,))
    yield from some(large, "lora", (32,))
    yield from some("ViT-Ti/16 at 96", "lora_vpt full", (32,))
    yield from some(large, "lora_vpt full", (32,))
    yield from some(f"{base}, {tiny}, ViT-Ti/16 at 96", "lora_vpt full", (128,))
    yield from some(large, "lora lora_vpt full", (128,))
