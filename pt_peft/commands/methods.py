"""Lists the methods with the parameters that train and travel on a backbone.

Example:
    pt-peft methods --backbone vit_small_patch14_dinov2 --classes 7
"""

from __future__ import annotations

import argparse
import difflib
import json
from typing import TYPE_CHECKING, NotRequired, TypedDict

from pt_peft.errors import UserError

if TYPE_CHECKING:
    from pt_peft.experiment.sections import Backbone, ModelSpec
    from pt_peft.model.adapted_model import AdaptedModel


class MethodRow(TypedDict):
    """One method on one backbone, at the method's default options."""

    method: str
    summary: str
    paper: str
    parameters: NotRequired[int]
    """Values that a site sends in a round, without the head."""
    head_parameters: NotRequired[int]
    bytes_a_round: NotRequired[int]
    """Raw float32 tensors, head included."""
    reason: NotRequired[str]
    """Why the method does not apply; the counts are left out then."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--backbone", required=True, metavar="NAME", help="timm architecture, e.g. vit_base_patch16_224"
    )
    parser.add_argument(
        "--image-size", type=int, help="side of the images, pixels (default: the architecture's own size)"
    )
    parser.add_argument("--classes", type=int, default=2, help="number of classes of the head (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Prints the methods. Raises UserError if the backbone is unknown or not a ViT."""
    rows = list_methods(options.backbone, options.image_size, options.classes)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'method':<14}{'parameters':>12}{'head':>8}{'kB a round':>13}  trains")
    for row in rows:
        if "parameters" in row and "head_parameters" in row and "bytes_a_round" in row:
            sizes = f"{row['parameters']:>12,}{row['head_parameters']:>8,}{row['bytes_a_round'] / 1000:>13,.1f}"
        else:
            sizes = f"{'-':>12}{'-':>8}{'-':>13}"
        print(f"{row['method']:<14}{sizes}  {row.get('reason', row['summary'])}")
    print(
        "kB a round: raw float32 tensors that a site sends, and receives, head included; each method at its defaults."
    )


def list_methods(backbone: str, image_size: int | None, classes: int) -> list[MethodRow]:
    """Counts what each method sends in a round on a backbone.

    Args:
        backbone: timm architecture.
        image_size: side, pixels; None takes the architecture's own.
        classes: number of classes of the head.

    Raises:
        UserError: if the backbone is unknown or not a ViT.
    """
    from pt_peft.experiment.sections import Method, ModelSpec
    from pt_peft.model.method import get_method, method_names
    from pt_peft.schema import parse

    pinned = _backbone(backbone, image_size, classes)
    rows: list[MethodRow] = []
    for name in method_names():
        record = get_method(name)
        row: MethodRow = {"method": name, "summary": record.summary, "paper": record.paper}
        fields = {"seed": 0, "backbone": pinned.model_dump(mode="json"), "classes": [str(i) for i in range(classes)]}
        spec = parse(ModelSpec, {**fields, "method": Method(name=name).model_dump(mode="json")}, "--classes")
        try:
            model = _build(spec)
        except UserError as error:
            rows.append({**row, "reason": str(error)})
            continue
        sent = model.exchange(1).trained(0)
        head = sum(one.size for key, one in sent.items() if key in model.head)
        total = sum(one.size for one in sent.values())
        nbytes = sum(one.nbytes for one in sent.values())
        rows.append({**row, "parameters": total - head, "head_parameters": head, "bytes_a_round": nbytes})
    return rows


def _backbone(name: str, image_size: int | None, classes: int) -> Backbone:
    """The section ``backbone`` of an experiment. Raises UserError if the backbone is unknown or not a ViT."""
    import timm
    import torch

    from pt_peft.experiment.sections import Backbone
    from pt_peft.model.backbone import create_backbone
    from pt_peft.schema import parse

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1) or ["vit_base_patch16_224"]
        raise UserError(f"--backbone: '{name}' is no architecture that timm knows; {close[0]} would be one.")
    if image_size is None:
        try:
            cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:
            raise UserError(f"--backbone: '{name}' is not known to timm ({error}).") from None
        image_size = cfg and cfg.input_size[-1]
    pinned = parse(Backbone, {"name": name, "image_size": image_size, "sha256": "0" * 64}, "--backbone")
    with torch.device("meta"):  # shapes are enough, and take no time
        try:
            create_backbone(pinned, classes, None)
        except UserError as error:
            raise UserError(f"--backbone: '{name}' cannot be used. {error}") from None
    return pinned


def _build(spec: ModelSpec) -> AdaptedModel:
    """The model without values, or with random ones where a tuner of HF PEFT reads them. Raises UserError."""
    import torch

    from pt_peft.model.adapted_model import build_model

    try:
        with torch.device("meta"):
            return build_model(spec, None)
    except UserError:
        return build_model(spec, None)
