"""The experiments that this repository ships, and where their data lie."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

from pt_peft import schema
from pt_peft.backbone import EMBEDDED
from pt_peft.data.lesions import CLASSES
from pt_peft.errors import UserError
from pt_peft.experiment import Backbone, Columns, Data, Experiment, Federation, Method, Partition, Training
from pt_peft.files import sha256_of
from pt_peft.site import Site, SiteData

COMMITTED = ("lora_vpt", "linear_probe")
"""Methods that have a job folder in `jobs/`."""

DEMO_SEED = 7
# Step sizes (and LoRA's scale) of the demo, chosen for each method over a small grid, on images of seeds 0 to 2.
DEMO_TRAINING = {
    "lora_vpt": Training(batch_size=8, learning_rate=3e-3, head_learning_rate=5e-3),
    "linear_probe": Training(batch_size=8, learning_rate=3e-2),
}
DEMO_OPTIONS = {"lora_vpt": {"lora": {"alpha": 16.0}}}

HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
HAM10000_SITES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
"""Values of the ``site`` column: the real acquisition sites."""


def shared_data(name: str) -> Path:
    """A file outside the repository, in ``$PT_PEFT_SHARED/data``. Raises UserError if it is not there."""
    path = (Path(os.environ.get("PT_PEFT_SHARED", "../shared")) / "data" / name).resolve()
    if not path.exists():
        raise UserError(f"PT_PEFT_SHARED: {path} does not exist; set it to the folder that holds 'data/{name}'.")
    return path


def demo(method: str) -> tuple[Experiment, Site]:
    """`method` on the embedded images and backbone: two sites, three rounds."""
    described = json.loads(EMBEDDED.with_suffix(".json").read_text(encoding="utf-8"))
    fields = ("name", "kwargs", "image_size", "sha256", "mean", "std")
    experiment = Experiment(
        name=method,
        seed=DEMO_SEED,
        backbone=schema.parse(Backbone, {field: described[field] for field in fields}, "backbone.json"),
        data=Data(
            source="lesions",
            classes=CLASSES[:4],
            images_per_site={"train": 384, "val": 128, "test": 256},
            augment=("flip", "rotate90"),
        ),
        method=Method(name=method, options=DEMO_OPTIONS.get(method, {})),
        training=DEMO_TRAINING[method],
    )
    return experiment, Site()


def ham10000() -> tuple[Experiment, Site]:
    """LoRA + deep prompts on HAM10000 by its four real acquisition sites, from an ImageNet ViT-Tiny."""
    weights = shared_data("vit_tiny_in21k_in1k/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors")
    experiment = Experiment(
        name="ham10000",
        backbone=Backbone(name="vit_tiny_patch16_224", image_size=96, sha256=sha256_of(weights)),
        data=Data(
            source="csv",
            classes=HAM10000_CLASSES,
            columns=Columns(label="dx", group="lesion_id", site="site"),
            augment=("flip", "rotate90"),
        ),
        partition=Partition(kind="natural"),
        method=Method(name="lora_vpt"),
        training=Training(learning_rate=1e-3, head_learning_rate=3e-3, class_weights="balanced"),
        federation=Federation(rounds=5, min_sites=3, sites=HAM10000_SITES),
    )
    data = SiteData(
        images=str(shared_data("ham10000_200x150/images.zip")), table=str(shared_data("ham10000_200x150/metadata.csv"))
    )
    return experiment, Site(data=data, backbone=str(weights))


PRESETS: dict[str, Callable[[], tuple[Experiment, Site]]] = {
    **{method: functools.partial(demo, method) for method in COMMITTED},
    "ham10000": ham10000,
}
