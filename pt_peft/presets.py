"""The experiments that this repository ships, and the places of their data."""

import json
import os
from pathlib import Path
from typing import Any, cast

from pt_peft import schema
from pt_peft.data.lesions import CLASSES
from pt_peft.data.medmnist import medmnist
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.own_images import Columns, SiteData
from pt_peft.experiment.sections import Backbone, Data, Federation, Head, Method, Partition, Training
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.model.backbone import EMBEDDED
from pt_peft.model.method import get_method, method_names

SIMULATED = Limits.open()
"""A preset's sites are one person's."""
DEMO_SEED = 7
DEMO_HEAD_LEARNING_RATE = 5e-3
"""Step size of the demo's head, unless the method's own is larger. Both were chosen on images of seeds 0 to 2."""

HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
HAM10000_SITES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
"""Values of the ``site`` column: the real acquisition sites."""
HAM10000_PENALTIES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Those that were tried when the classifier in closed form became the preset's
(`benchmark/measurements/head_refit.py`)."""


def shared_data(name: str) -> Path:
    """A file outside the repository, in ``$PT_PEFT_SHARED/data``.

    Raises:
        UserError: if it does not exist.
    """
    path = (Path(os.environ.get("PT_PEFT_SHARED", "../shared")) / "data" / name).resolve()
    if not path.exists():
        raise UserError(f"PT_PEFT_SHARED: {path} does not exist; set it to the folder that holds 'data/{name}'.")
    return path


def embedded_backbone() -> Backbone:
    """The backbone whose weights are in the repository."""
    described = json.loads(EMBEDDED.with_suffix(".json").read_text(encoding="utf-8"))
    fields = ("name", "kwargs", "image_size", "sha256", "mean", "std")
    return schema.parse(Backbone, {field: described[field] for field in fields}, "backbone.json")


def starting_rate(method: str) -> float:
    """The step size in the record of `method`; the smallest if several are joined by ``+``."""
    return min(get_method(name).learning_rate for name in method.split("+"))


def demo(method: str) -> tuple[Experiment, Site]:
    """`method`, or several joined by ``+``, on the embedded images and backbone: two sites, three rounds.

    In float32, so that it ends alike on all machines, to rounding.
    """
    rate = starting_rate(method)
    experiment = Experiment(
        name=method,
        seed=DEMO_SEED,
        backbone=embedded_backbone(),
        data=Data(
            source="lesions",
            classes=CLASSES[:4],
            images_per_site={"train": 384, "val": 128, "test": 256},
            augment=("flip", "rotate90"),
        ),
        method=Method(name=method),
        training=Training(
            batch_size=8,
            learning_rate=rate,
            head_learning_rate=max(rate, DEMO_HEAD_LEARNING_RATE),
        ),
    )
    return experiment, Site(limits=SIMULATED)


def ham10000() -> tuple[Experiment, Site]:
    """LoRA + deep prompts on HAM10000 by its four real acquisition sites, from an ImageNet ViT-Tiny."""
    weights = shared_data("vit_tiny_in21k_in1k/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors")
    experiment = Experiment(
        name="ham10000",
        backbone=Backbone(name="vit_tiny_patch16_224", image_size=96, sha256=sha256_of(weights)),
        data=Data(
            source="site",
            classes=HAM10000_CLASSES,
            fit="crop",  # lesions are in the middle: a third more pixels for them than with the whole image
            augment=("flip", "rotate90"),
        ),
        partition=Partition(kind="natural"),
        method=Method(name="lora_vpt", options={"lora": {"alpha": 8.0}}),
        training=Training(learning_rate=2e-3, head_learning_rate=3e-3, imbalance="balanced_softmax", precision="auto"),
        head=Head(finish="ridge", penalties=HAM10000_PENALTIES),
        federation=Federation(rounds=12, min_sites=3, sites=HAM10000_SITES),
    )
    data = SiteData(
        images=str(shared_data("ham10000_200x150/images.zip")),
        table=str(shared_data("ham10000_200x150/metadata.csv")),
        columns=Columns(label="dx", group="lesion_id", site="site"),
        pooled=True,
    )
    return experiment, Site(data=data, backbone=str(weights), limits=SIMULATED)


def medmnist_preset(flag: str) -> tuple[Experiment, Site]:
    """The demo's LoRA + deep prompts on a MedMNIST data set that is dealt equally to the sites.

    Args:
        flag: of the data set; the caller's site.json has its file, ``"source": "npz"`` and ``"pooled": true``.

    Raises:
        UserError: for an unknown flag.
    """
    experiment, site = demo("lora_vpt")
    partition = Partition(kind="iid")
    training = experiment.training.model_copy(update={"precision": "auto"})
    fields = {"name": flag, "data": medmnist(flag), "partition": partition, "training": training}
    return experiment.model_copy(update=fields), site


def ridge_probe() -> tuple[Experiment, Site]:
    """The demo's linear probe in closed form: done after three exchanges of statistics, without a round of training."""
    experiment, site = demo("linear_probe")
    federation = experiment.federation.model_copy(update={"rounds": 0})
    fields = {"name": "ridge_probe", "head": Head(start="ridge"), "federation": federation}
    return experiment.model_copy(update=fields), site


def committed_jobs() -> dict[str, Experiment]:
    """The experiments that have a job folder in `jobs/`, by its name."""
    methods = [name for name in method_names() if get_method(name).job]
    return {name: demo(name)[0] for name in methods} | {"ridge_probe": ridge_probe()[0]}


def open_experiment(given: str) -> tuple[Experiment, Site]:
    """The experiment that a command's argument names, and the site that is known with it.

    Args:
        given: a job folder, an experiment.json, or the name of a `preset`. The first two come with a site of defaults.

    Raises:
        UserError: if it is none of these, or not valid.
    """
    path = Path(given)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # too long a name, for one
        is_folder = is_file = False
    if is_folder:
        file = path / "app" / "config" / "experiment.json"
        if not file.is_file():
            raise UserError(f"{path}: is not a job folder: it has no app/config/experiment.json.")
        return Experiment.read(file), Site(limits=SIMULATED)
    if is_file:
        return Experiment.read(path), Site(limits=SIMULATED)
    return preset(given)


def preset(name: str) -> tuple[Experiment, Site]:
    """The experiment and the site of a preset.

    Args:
        name: ``ham10000``, ``ridge_probe``, ``medmnist:<flag>``, or for the demo a method or several joined by ``+``.

    Raises:
        UserError: for another name; the message lists the known ones.
    """
    if name == "ham10000":
        return ham10000()
    if name == "ridge_probe":
        return ridge_probe()
    if name.startswith("medmnist:"):
        return medmnist_preset(name.removeprefix("medmnist:"))
    if not set(name.split("+")) <= set(method_names()):
        known = ", ".join(method_names())
        raise UserError(
            f"'{name}' is neither a file, nor 'ham10000', nor 'ridge_probe', nor 'medmnist:<flag>', nor a method "
            f"({known}) or several joined by '+'."
        )
    return demo(name)


def override(experiment: Experiment, assignments: list[str]) -> Experiment:
    """`experiment` with fields replaced.

    Args:
        experiment: is not changed.
        assignments: each ``path.to.field=JSON``; a value that is not JSON counts as a string.

    Raises:
        UserError: if an assignment has no ``=``, or the result is not a valid experiment.
    """
    fields = experiment.model_dump(mode="json")
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"--set: '{assignment}' is not of the form field=value.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, last = path.split(".")
        target = fields
        for parent in parents:
            inner = target.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set: '{path}' goes through '{parent}', which has no fields.")
            target = cast(dict[str, Any], inner)
        target[last] = value
    return schema.parse(Experiment, fields, "--set")
