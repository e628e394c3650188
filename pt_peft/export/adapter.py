"""The adapter file, opened as a model and written as a format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from pt_peft import schema
from pt_peft.errors import BackboneMismatch, UserError
from pt_peft.exchange.tensors import TensorError, check_tensors
from pt_peft.experiment.preprocessing import Preprocessing
from pt_peft.experiment.prevalence import KnownPrevalence
from pt_peft.experiment.sections import Backbone, ModelSpec
from pt_peft.files import RUN_FOLDERS, sha256_of
from pt_peft.model.adapted_model import AdaptedModel, build_model
from pt_peft.model.adapter_file import Header, load_adapter, save_adapter
from pt_peft.model.backbone import EMBEDDED, check_digest, create_backbone
from pt_peft.schema import read_json

HEADER = "pt_peft.json"
"""The adapter file's header in the folder of a format."""


@dataclass(frozen=True)
class Description:
    """What a header says of its model."""

    spec: ModelSpec
    """Backbone, method, classes and task."""
    preprocessing: Preprocessing
    """What comes before the model, and after it."""
    prevalence: KnownPrevalence
    """How frequent the classes were where it learned."""


def find_adapter(run: Path) -> Path:
    """The final adapter of a run.

    Args:
        run: the adapter file itself, or a folder that FLARE's simulator or a job download left.

    Raises:
        UserError: if there is none.
    """
    if run.is_file():
        return run
    for name in ("adapter.safetensors", "encrypted_adapter.safetensors"):
        for place in RUN_FOLDERS:
            if (run / place / name).is_file():
                return run / place / name
    raise UserError(
        f"{run}: is neither an adapter file nor a run with one (looked for adapter.safetensors in it, and in its "
        f"folders {', '.join(place for place in RUN_FOLDERS if place)})."
    )


def backbone_file(backbone: Backbone, given: Path | None) -> Path:
    """The weights file whose digest `backbone` pins.

    Args:
        backbone: pins the digest.
        given: the option ``--backbone``; None for the embedded weights.

    Raises:
        UserError: if `given` is no file, or the embedded weights are not the pinned ones.
        BackboneMismatch: if `given` is not the pinned file.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"backbone: {given} is not a file.")
        try:
            check_digest(backbone, given)
        except BackboneMismatch as error:
            raise BackboneMismatch(f"backbone: {given}: {error}") from None
        return given
    if sha256_of(EMBEDDED) == backbone.sha256:
        return EMBEDDED
    raise UserError(
        f"backbone: the weights of '{backbone.name}' with SHA-256 {backbone.sha256} are needed; give their file "
        "(--backbone)."
    )


def read_spec(header: object, source: Path) -> ModelSpec:
    """The model that a header describes.

    Args:
        header: as `adapter_header` makes it, read from a file.
        source: that file, for the error.

    Raises:
        UserError: if the header describes no model.
    """
    model = cast(dict[object, object], header).get("model") if isinstance(header, dict) else None
    if model is None:
        raise UserError(f"{source}: its header has no field 'model'; it was written by an older version.")
    return schema.parse(ModelSpec, model, f"{source}: header field 'model'")


def read_preprocessing(header: object, spec: ModelSpec, source: Path) -> Preprocessing:
    """How a header says that images become the model's input.

    Args:
        header: as `adapter_header` makes it, read from a file.
        spec: the model that the header describes.
        source: that file, for the error.

    Raises:
        UserError: if the header does not say it, or does not agree with itself.
    """
    said = cast(dict[object, object], header).get("preprocessing") if isinstance(header, dict) else None
    if said is None:
        raise UserError(
            f"{source}: its header has no field 'preprocessing', so nobody knows how its images were scaled and cut; "
            "an older version wrote it, and an adapter of this version would be right."
        )
    found = schema.parse(Preprocessing, said, f"{source}: header field 'preprocessing'")
    backbone = spec.backbone
    for name, value, right in (
        ("decoding.image_size", found.decoding.image_size, backbone.image_size),
        ("mean", found.mean, backbone.mean),
        ("std", found.std, backbone.std),
    ):
        if value != right:
            raise UserError(
                f"{source}: header field 'preprocessing.{name}' is {value}, but 'model.backbone' has {right}; the same "
                "would be right."
            )
    return found


def read_prevalence(header: object, spec: ModelSpec, source: Path) -> KnownPrevalence:
    """What a header says of the classes' prevalence.

    Args:
        header: as `adapter_header` makes it, read from a file.
        spec: the model that the header describes.
        source: that file, for the error.

    Raises:
        UserError: if it says it in a way that no version does, or not of the model's classes.
    """
    fields = cast(dict[object, object], header) if isinstance(header, dict) else {}
    said = {name: fields[name] for name in KnownPrevalence.model_fields if name in fields}
    found = schema.parse(KnownPrevalence, said, f"{source}: header")
    if found.class_counts and len(found.class_counts.counts) != len(spec.classes):
        raise UserError(
            f"{source}: header field 'class_counts.counts' has {len(found.class_counts.counts)} numbers; one for each "
            f"of the {len(spec.classes)} classes would be right."
        )
    return found


def read_description(header: object, source: Path) -> Description:
    """All that a header says of its model. Raises UserError as `read_spec` and the others do."""
    spec = read_spec(header, source)
    return Description(spec, read_preprocessing(header, spec, source), read_prevalence(header, spec, source))


def open_adapter(path: Path, weights: Path | None) -> tuple[AdaptedModel, ModelSpec, Header]:
    """Opens an adapter file as a model.

    Args:
        path: the adapter file.
        weights: the backbone's file; None takes the embedded one.

    Returns:
        The model with the adapter's tensors, its description, and the file's header.

    Raises:
        UserError: if the file is no adapter, the backbone is another, or tensors are missing or do not fit.
    """
    everything, header = load_adapter(path)
    # Keys with a slash, in a site's own file, are not of its model.
    tensors = {key: value for key, value in everything.items() if "/" not in key}
    spec = read_spec(header, path)
    if "encrypted" in header:
        raise UserError(f"{path}: is encrypted; `pt-peft decrypt` makes an adapter of it with a site's key.")
    try:
        model = build_model(spec, backbone_file(spec.backbone, weights))
    except BackboneMismatch:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if missing := sorted(model.personal - tensors.keys()):
        raise UserError(
            f"{path}: has no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}: each site keeps its own, see "
            f"field 'method.{'head' if missing[0] in model.head else 'roles'}'; a site's own model is "
            "local_adapter.safetensors in its folder of the run."
        )
    rounds = header.get("round")
    if not isinstance(rounds, int) or not 0 <= rounds <= 100_000:
        raise UserError(
            f"{path}: its header's field 'round' is {rounds!r}; the number of finished rounds would be right."
        )
    # An adapter of a round-dependent method lacks tensors that no round has drawn: they are the backbone's.
    needed = model.exchange(rounds).down(0, rounds).keys() | model.personal
    specs = {key: one for key, one in model.specs().items() if key in tensors or key in needed}
    try:
        model.load(check_tensors(tensors, specs))
    except TensorError as error:
        raise UserError(f"{path}: {error}.") from None
    return model, spec, header


def load_merged(
    folder: Path, weights: Path, read: Callable[[Path], Mapping[str, torch.Tensor]]
) -> tuple[nn.Module, Description]:
    """Loads a folder of a format that merges the adapters into the backbone's weights.

    Args:
        folder: which has the adapter file's header in `HEADER`.
        weights: the file of the tensors in `folder`.
        read: reads them.

    Returns:
        The model of normalised images, and its description.

    Raises:
        UserError: if the folder is of another kind, or is damaged.
    """
    header, path = read_json(folder / HEADER), folder / weights
    described = read_description(header, folder / HEADER)
    model = create_backbone(described.spec.backbone, len(described.spec.classes), None)
    try:
        model.load_state_dict(read(path))
    except Exception as error:  # zipfile, pickle, safetensors and torch raise many
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{path}: cannot be loaded ({reason}).") from None
    return model, described


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes a copy of an adapter file, once it has opened without an error.

    Args:
        adapter: the adapter file.
        weights: the backbone's file; None takes the embedded one.
        out: the copy.

    Raises:
        UserError: as `open_adapter` does.
    """
    open_adapter(adapter, weights)
    save_adapter(out, *load_adapter(adapter))
