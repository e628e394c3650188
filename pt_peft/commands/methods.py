"""Lists the methods with the parameters that train and travel on a backbone."""

import argparse
import difflib
import json

from pt_peft.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--backbone", required=True, metavar="NAME", help="timm architecture, e.g. vit_base_patch16_224"
    )
    parser.add_argument("--image-size", type=int, help="side in pixels; the architecture's own if not given")
    parser.add_argument("--classes", type=int, default=2, help="number of classes, for the head")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> None:
    """Raises UserError if the backbone is not known or not a ViT."""
    rows = list_methods(options.backbone, options.image_size, options.classes)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'method':<14}{'parameters':>12}{'head':>8}{'kB a round':>13}  trains")
    for row in rows:
        if "reason" in row:
            print(f"{row['method']:<14}{'–':>12}{'–':>8}{'–':>13}  {row['reason']}")
        else:
            kilobytes = row["bytes_a_round"] / 1000
            print(
                f"{row['method']:<14}{row['parameters']:>12,}{row['head_parameters']:>8,}{kilobytes:>13,.1f}  {row['summary']}"
            )
    print(
        "kB a round: what a site sends, and receives, of raw float32 tensors, head included; every method at its defaults."
    )


def list_methods(backbone: str, image_size: int | None, classes: int) -> list[dict]:
    """One row a method: the parameters that a site sends in a round without the head, the head's, and their bytes; or the
    ``reason`` why it does not apply.

    Raises:
        UserError: if the backbone is not known or not a ViT.
    """
    import timm
    import torch

    from pt_peft.experiment.sections import Backbone, Method, ModelSpec
    from pt_peft.model.adapted_model import build_model
    from pt_peft.model.backbone import create_backbone
    from pt_peft.model.method import get_method, method_names
    from pt_peft.schema import parse

    if not timm.is_model(backbone):
        close = difflib.get_close_matches(backbone, timm.list_models(), n=1) or ["vit_base_patch16_224"]
        raise UserError(f"--backbone: '{backbone}' is no architecture that timm knows; {close[0]} would be one.")
    if image_size is None:
        try:
            image_size = timm.get_pretrained_cfg(backbone).input_size[-1]
        except RuntimeError as error:
            raise UserError(f"--backbone: '{backbone}' is not known to timm ({error}).") from None
    pinned = parse(Backbone, {"name": backbone, "image_size": image_size, "sha256": "0" * 64}, "--backbone")
    with torch.device("meta"):  # shapes are enough, and take no time
        try:
            create_backbone(pinned, classes, None)
        except UserError as error:
            raise UserError(f"--backbone: '{backbone}' cannot be used. {error}") from None
    rows = []
    for name in method_names():
        record = get_method(name)
        row = {"method": name, "summary": record.summary, "paper": record.paper}
        fields = {"seed": 0, "backbone": pinned.model_dump(mode="json"), "classes": [str(i) for i in range(classes)]}
        spec = parse(ModelSpec, {**fields, "method": Method(name=name).model_dump(mode="json")}, "--classes")
        try:
            with torch.device("meta"):
                model = build_model(spec, None)
        except UserError:
            try:
                model = build_model(spec, None)  # some tuners look at values
            except UserError as error:
                rows.append({**row, "reason": str(error)})
                continue
        sent = model.exchange(1).trained(0)
        head = sum(one.size for key, one in sent.items() if key in model.head)
        total = sum(one.size for one in sent.values())
        nbytes = sum(one.nbytes for one in sent.values())
        rows.append({**row, "parameters": total - head, "head_parameters": head, "bytes_a_round": nbytes})
    return rows
