"""The adapter file, as a model and as a format."""

from pathlib import Path

from pt_peft import schema
from pt_peft.errors import BackboneMismatch, UserError
from pt_peft.exchange.tensors import TensorError, check_tensors
from pt_peft.experiment.sections import Backbone, ModelSpec
from pt_peft.files import sha256_of
from pt_peft.model.adapted_model import AdaptedModel, build_model
from pt_peft.model.adapter_file import load_adapter, save_adapter
from pt_peft.model.backbone import EMBEDDED, check_digest


def find_adapter(run: Path) -> Path:
    """The final adapter of `run`: the file itself, or a folder that FLARE's simulator or job download left.

    Raises:
        UserError: if there is none.
    """
    if run.is_file():
        return run
    places = ("", "server/simulate_job", "workspace", "simulate_job")
    for name in ("adapter.safetensors", "encrypted_adapter.safetensors"):
        for place in places:
            if (run / place / name).is_file():
                return run / place / name
    raise UserError(
        f"{run}: is neither an adapter file nor a run with one (looked for adapter.safetensors in it, and in its folders "
        f"{', '.join(place for place in places if place)})."
    )


def backbone_file(backbone: Backbone, given: Path | None) -> Path:
    """The weights that `backbone` pins: `given`, or the embedded ones if they are it.

    Raises:
        UserError: if they are not.
        BackboneMismatch: if `given` is another file.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"--backbone: {given} is not a file.")
        try:
            check_digest(backbone, given)
        except BackboneMismatch as error:
            raise BackboneMismatch(f"--backbone: {given}: {error}") from None
        return given
    if sha256_of(EMBEDDED) == backbone.sha256:
        return EMBEDDED
    raise UserError(
        f"--backbone: the weights of '{backbone.name}' with SHA-256 {backbone.sha256} are needed; give their file."
    )


def read_spec(header: object, source: Path) -> ModelSpec:
    """The model that a header of ours describes. Raises UserError."""
    if not (isinstance(header, dict) and "model" in header):
        raise UserError(f"{source}: its header has no field 'model'; it was written by an older version.")
    return schema.parse(ModelSpec, header["model"], f"{source}: header field 'model'")


def open_adapter(path: Path, weights: Path | None) -> tuple[AdaptedModel, ModelSpec, dict]:
    """The model of the adapter file `path`, its description and the file's header.

    Args:
        weights: the backbone's file; None takes the embedded one.

    Raises:
        UserError: if the file is no adapter, the backbone is another, or tensors are missing or do not fit.
    """
    everything, header = load_adapter(path)
    # In a site's own file stand, below names with a slash, things that are not its model's.
    tensors = {key: value for key, value in everything.items() if "/" not in key}
    spec = read_spec(header, path)
    if "encrypted" in header:
        raise UserError(
            f"{path}: is encrypted; `python -m pt_peft_flare decrypt` makes an adapter of it for whoever has a site's key."
        )
    try:
        model = build_model(spec, backbone_file(spec.backbone, weights))
    except BackboneMismatch:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if missing := sorted(model.personal - tensors.keys()):
        raise UserError(
            f"{path}: has no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}: each site keeps its own, see field "
            f"'method.{'head' if missing[0] in model.head else 'roles'}'; a site's own model is local_adapter.safetensors in its "
            "folder of the run."
        )
    rounds = header.get("round")
    if not isinstance(rounds, int) or not 0 <= rounds <= 100_000:
        raise UserError(
            f"{path}: its header's field 'round' is {rounds!r}; the number of finished rounds would be right."
        )
    # A round-dependent method leaves those tensors out that were not drawn so far: they are the backbone's.
    needed = model.exchange(rounds).down(0, rounds).keys() | model.personal
    specs = {key: one for key, one in model.specs().items() if key in tensors or key in needed}
    try:
        model.load(check_tensors(tensors, specs))
    except TensorError as error:
        raise UserError(f"{path}: {error}.") from None
    return model, spec, header


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes a copy of the adapter file, after it was opened for a check."""
    open_adapter(adapter, weights)
    save_adapter(out, *load_adapter(adapter))
