"""The sections of `experiment.json` that describe the model, the data, the training and the federation.

The other sections are defined beside what they choose: `aggregation`, `payload` and `server_optimizer` in
`pt_peft.exchange`, `privacy` and `encryption` in this package.
"""

import unicodedata
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from pt_peft.schema import Strict
from pt_peft.statistics.closed_form import Kind

Images = Annotated[int, Field(ge=1, le=10**7)]
ChannelMean = Annotated[float, Field(ge=-10, le=10)]
Std = Annotated[float, Field(ge=1e-3, le=10)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
"""A name in a site's own files, as it stands there."""


def _plain(name: str) -> str:
    # It is shown at every site, and tables have names cleaned (`pt_peft.data.names`).
    if not name.isprintable() or name != unicodedata.normalize("NFC", name.strip()):
        raise ValueError("printable text in Unicode's form NFC, without blanks at its ends, would be right")
    return name


ClassName = Annotated[Name, AfterValidator(_plain)]
"""A class's name: printable, in Unicode's form NFC, without blanks at its ends."""
Task = Literal["multiclass", "multilabel", "ordinal"]
"""``multiclass``: one class of several; ``multilabel``: any number of classes; ``ordinal``: one grade of an order."""
Intensity = Literal["type", "image"]
"""The values that become 0 to 255 in an image of more than 8 bits: all of its type, or the image's own."""
Fit = Literal["pad", "crop", "squash"]
"""How an image that is not square becomes so: filled up at its sides, cut, or with its sides in another proportion."""
TestTimeFlips = Literal["none", "horizontal", "all"]
"""The flips of an image over which evaluation averages its logits."""
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
"""A pattern of names, with ``*``, ``?`` and ``[…]`` as in `fnmatch`."""
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$")]
"""A site's name; it becomes a folder and an address in FLARE."""

FIXED_KWARGS = ("img_size", "num_classes", "in_chans", "checkpoint_path", "cache_dir", "scriptable", "exportable")
"""Arguments of ``timm.create_model`` that may not be set: they follow from other fields, or read files of the site."""

LAYERS = {
    "act_layer": ("gelu", "gelu_tanh", "quick_gelu", "silu"),
    "mlp_layer": ("Mlp", "SwiGLU", "SwiGLUPacked"),
}
"""Arguments of timm's Vision Transformers that are classes, and the names that they may have in JSON: what published
weights were trained with. Other activations could make a gradient tell single images apart, as ReLU's zeros do."""

MAX_DEPTH = 256
"""Most blocks of a backbone: a typing error would fill a site's memory."""
_SWITCHES = ("qkv_bias", "qk_norm", "class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm")
_KWARGS: dict[str, tuple[TypeAdapter[Any], str]] = {
    "depth": (TypeAdapter(Annotated[int, Field(ge=1, le=MAX_DEPTH)]), f"a number of blocks from 1 to {MAX_DEPTH}"),
    **dict.fromkeys(
        ("patch_size", "embed_dim", "num_heads"), (TypeAdapter(PositiveInt), "a whole number of 1 or more")
    ),
    "reg_tokens": (TypeAdapter(NonNegativeInt), "a whole number of 0 or more"),
    "mlp_ratio": (TypeAdapter(PositiveFloat), "a number above 0"),
    "init_values": (TypeAdapter(PositiveFloat | None), "a number above 0, or null"),
    **dict.fromkeys(_SWITCHES, (TypeAdapter(bool), "true or false")),
    "global_pool": (
        TypeAdapter(Literal["token", "avg", "avgmax", "max", "map"]),
        "'token', 'avg', 'avgmax', 'max' or 'map'",
    ),
    **dict.fromkeys(
        [f"{what}drop_rate" for what in ("", "pos_", "proj_", "attn_", "patch_")] + ["drop_path_rate"],
        (TypeAdapter(Annotated[float, Field(ge=0, lt=1)]), "a number from 0 to below 1"),
    ),
}
"""Arguments that several architectures of timm take: the type, which timm itself does not check, and its name."""


class Backbone(Strict):
    """The Vision Transformer all sites start from."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")
    """timm architecture, e.g. ``vit_tiny_patch16_224``; no ``hf-hub:`` or ``local-dir:``: where weights
    come from is for `site.json` to say."""
    kwargs: dict[str, JsonValue] = Field(default={})
    """Arguments passed on to ``timm.create_model``. Two are classes, which have names here: ``act_layer`` (``gelu``,
    ``gelu_tanh``, ``quick_gelu``, ``silu``) and ``mlp_layer`` (``Mlp``, ``SwiGLU``, ``SwiGLUPacked``, of timm's
    layers). ``dynamic_img_size`` may be there and changes nothing, as all images have ``image_size``."""
    image_size: int = Field(ge=16, le=1024)
    """Side of the square input in pixels; position embeddings are resampled to it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the weights file. A site whose file differs refuses to train."""
    mean: tuple[ChannelMean, ChannelMean, ChannelMean] = (0.5, 0.5, 0.5)
    """Subtracted from each channel of images scaled to [0, 1]."""
    std: tuple[Std, Std, Std] = (0.5, 0.5, 0.5)
    """Divides each channel after that."""
    allow_missing: tuple[Pattern, ...] = ()
    """Tensors that the weights file may lack, as patterns of timm's keys such as ``fc_norm.*``. The seed draws them,
    the same at every site. None of the blocks or the patch embedding, and at most a tenth of the parameters. A
    site refuses them unless its `limits.pinned_backbone` is false, and so it does unused ones."""
    allow_unused: tuple[Pattern, ...] = ()
    """Tensors of the weights file that may stay unused, as patterns of their names there. Heads always may."""

    @field_validator("name", mode="before")
    @classmethod
    def _names_no_place(cls, value: object) -> object:
        if isinstance(value, str) and ":" in value:
            raise ValueError(
                "a job names an architecture of timm, such as 'vit_base_patch16_224'; where its weights come from is "
                "for each site's site.json to say, in 'backbone'"
            )
        return value

    @field_validator("kwargs")
    @classmethod
    def _allowed_kwargs(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value:
            if name in FIXED_KWARGS or name.startswith("pretrained"):
                raise ValueError(f"'{name}' may not be set here")
            if name in LAYERS and value[name] not in LAYERS[name]:
                raise ValueError(f"'{name}' is {value[name]!r}; {', '.join(LAYERS[name])} would be right")
            if name in _KWARGS:
                kind, named = _KWARGS[name]
                try:
                    kind.validate_python(value[name], strict=True)
                except ValidationError:
                    raise ValueError(f"'{name}' must be {named}") from None
        if str(value.get("mlp_layer")).startswith("SwiGLU") and value.get("act_layer") != "silu":
            raise ValueError(f"'mlp_layer' is {value['mlp_layer']!r}, whose 'act_layer' must be 'silu': timm's is gelu")
        return value


class Fold(Strict):
    """One part of a cross-validation, in which every image is tested exactly once."""

    number: int = Field(ge=1, le=100)
    """Which fold is tested, counted from 1."""
    of: int = Field(ge=2, le=100)
    """How many folds there are."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.number > self.of:
            raise ValueError(f"'number' is {self.number}; at most 'of' ({self.of}) would be right")
        return self


class Data(Strict):
    """The classes, and how images become batches. What a site's images are and mean is for its `site.json` to say."""

    MOVED: ClassVar = {
        name: f"stands in each site's site.json now, as 'data.{name}': what its images mean is the site's to say"
        for name in ("columns", "no_finding")
    }
    source: Literal["site", "lesions"]
    """``site``: each site's own images, as its `site.json` describes them; ``lesions``: the embedded generator."""
    task: Task = "multiclass"
    """``multilabel`` trains one sigmoid for each class with binary cross-entropy; ``ordinal`` trains as ``multiclass``
    and reports the metrics of graded labels besides."""
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=1000)
    """Class names in the order of the head's outputs; for ``ordinal`` from the lowest grade to the highest."""
    fit: Fit = "pad"
    """How an image that is not square becomes the model's square input: ``pad`` resizes its longer side and fills the
    rest with the backbone's mean colour, so that nothing of it is lost; ``crop`` resizes its shorter side and keeps the
    middle; ``squash`` resizes both sides, which distorts it. Square images are the same by all three."""
    intensity: Intensity = "type"
    """How 16-bit grey images are scaled to 0 … 255: ``type`` maps the whole range of their type, ``image`` each image's
    own lowest to highest value (12-bit data in 16-bit files would else be nearly black)."""
    images_per_site: dict[Literal["train", "val", "test"], Images] = Field(
        default={"train": 256, "val": 128, "test": 256}
    )
    """Images that a site draws in each split; used by ``lesions``."""
    max_images_per_site: dict[Literal["train", "val", "test"], Images] = Field(default={})
    """Most images of a split that a simulated site uses, drawn by the seed from its share; used by ``site``. A site
    refuses it unless its `site.json` says ``pooled``."""
    fold: Fold | None = None
    """Deals the images into folds, by lesion or patient (``data.columns.group`` in `site.json`) and stratified by class
    and site; used by ``site``, where the images have no splits of their own. The test images are those of one fold; an
    eighth of the other groups are for validation. Which images a fold has follows from the site's table alone, not from
    ``seed``. A site refuses it unless its `site.json` says ``pooled``. null: the splits that the site's data assigns,
    or else those that are drawn: by ``seed`` for pooled images, for a site's own the same in all jobs."""
    augment: tuple[Literal["flip", "rotate90", "intensity"], ...] = ()
    """Random transforms of training images, drawn anew for every batch."""
    test_time_flips: TestTimeFlips = "none"
    """Evaluation averages the logits of the image and its mirror image (``horizontal``), or of its four flips
    (``all``)."""

    @field_validator("source", mode="before")
    @classmethod
    def _said_by_the_site(cls, value: object) -> object:
        if value not in ("site", "lesions"):
            raise ValueError(
                "'site' or 'lesions' would be right; what a site's images are and mean is said in its site.json, by "
                "'data.source', 'data.columns' and 'data.classes'"
            )
        return value

    @field_validator("images_per_site")
    @classmethod
    def _some_to_train(cls, value: dict[str, int]) -> dict[str, int]:
        if "train" not in value:
            raise ValueError("'train' must be among the splits")
        return value

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must differ from one another")
        return value


Strength = Annotated[float, Field(ge=0, le=2)]
"""Strength of a feature shift: 0 changes nothing, 1 is what different devices may do."""


class FeatureShift(Strict):
    """How much the images of sites differ; each site draws its own change once (`pt_peft.data.feature_shift`)."""

    intensity: Strength = 0.0
    """Strength of the change of the gamma curve."""
    colour: Strength = 0.0
    """Strength of the change of each channel's gain."""
    stain: Strength = 0.0
    """Strength of the change of haematoxylin, eosin and DAB, for histology."""
    blur: Strength = 0.0
    """Strength of the change of focus."""


class Partition(Strict):
    """Which images each simulated site has, and how they look."""

    kind: Literal["none", "iid", "natural", "dirichlet", "dirichlet_by_site", "shards", "quantity"] = "none"
    """``none``: a site uses all its images (real federations, ``lesions``); ``iid``: equal random shares; ``natural``:
    the images whose ``data.columns.site`` is the site's name; ``dirichlet``: label skew, a draw for
    each class (Yurochkin et al. 2019, arXiv:1905.12022); ``dirichlet_by_site``: label skew of sites of one size, a draw
    for each site (Hsu et al. 2019, arXiv:1909.06335); ``shards``: a few classes for each site; ``quantity``: the same
    mix of classes in very different numbers."""
    alpha: float = Field(default=0.5, gt=0, le=10_000)
    """Concentration. ``dirichlet``: at 0.05 most classes are at one or two sites, at 100 sites are nearly IID.
    ``dirichlet_by_site``, for all classes together: at 0.1 most sites have little but one class."""
    classes_per_site: int = Field(default=2, ge=1, le=1000)
    """Classes of a site under ``shards``."""
    exponent: float = Field(default=1.0, ge=0, le=10)
    """Exponent of ``quantity``: the i-th site's size is proportional to i ** -exponent."""
    iid_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the images that the skewed kinds deal equally, so that both are mixed."""
    min_images: int = Field(default=1, ge=0, le=10**6)
    """Fewest training images of a site; the skewed kinds move as few as needed from the largest sites."""
    feature_shift: FeatureShift | None = None
    """Changes every image of a site, in all splits; goes with any kind."""


Role = Literal["exchanged", "local", "frozen"]
"""``exchanged``: the tensor trains and travels; ``local``: it trains and stays at its site; ``frozen``: it keeps its
start, the same at all sites."""


class Method(Strict):
    """The PEFT method."""

    name: str = Field(min_length=1, max_length=200)
    """A name of the registry, or several joined by ``+``."""
    options: dict[str, dict[str, JsonValue]] = Field(default={})
    """Options of each method that takes part, by its name: ``{"lora": {"rank": 4}}``."""
    head: Role = "exchanged"
    """Role of the classifier's tensors."""
    roles: dict[Pattern, Role] = Field(default={})
    """Roles of the method's own tensors, by patterns of their keys; the others are exchanged. ``{"*.lora_A":
    "frozen"}`` is FFA-LoRA (Sun et al. 2024, arXiv:2403.12313), ``{"*.lora_B": "local"}`` is FedSA-LoRA (Guo et al.
    2025, arXiv:2410.01463)."""


Precision = Literal["float32", "bfloat16"]
"""What a model computes in."""


class Training(Strict):
    """Local training in a round."""

    batch_size: int = Field(default=32, ge=1, le=4096)
    """Images in a step."""
    local_epochs: int = Field(default=1, ge=1, le=1000)
    """Passes over the site's training images in a round."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Peak step size of AdamW for adapters."""
    head_learning_rate: float | None = Field(default=None, gt=0, le=10)
    """Peak step size of AdamW for the head; null takes ``learning_rate``."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of AdamW, on tensors of two or more dimensions."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """``cosine`` decays from the first step after the warm-up to zero at the last step of the last round."""
    warmup_rounds: float = Field(default=0.0, ge=0, le=1000)
    """Rounds, or parts of one, in which the learning rates rise from zero to their peak, before ``schedule`` begins."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567); over those
    that the site has under ``fedlc``, and by their shares there under ``balanced_softmax``."""
    precision: Literal["auto", Precision] = "float32"
    """Precision of the forward pass, by autocast; tensors that train and travel are float32 in any case. ``auto``: each
    site computes in bfloat16 if its GPU or processor has instructions for it, which is faster, else in float32, and
    says which; results then differ between machines of different kinds."""
    proximal: float = Field(default=0.0, ge=0, le=1000)
    """mu of FedProx (Li et al. 2020, arXiv:1812.06127): adds mu/2 times the squared distance of the exchanged tensors
    from where the round started to the loss."""
    control_variates: bool = False
    """SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378): each step's gradient is corrected by how much the site's
    mean gradient differs from all sites'. Doubles what travels. See `pt_peft.federation.local_round`."""
    ditto: float = Field(default=0.0, ge=0, le=1000)
    """lambda of Ditto (Li et al. 2021, arXiv:2012.04221): above 0, each site also trains a model of its own, pulled
    towards the federation's as in FedProx; it stays at the site and doubles its work."""
    imbalance: Literal[
        "none", "weighted_loss", "federation_weights", "balanced_softmax", "fedlc", "weighted_sampler"
    ] = "none"
    """How a site treats rare classes (`pt_peft.training.imbalance`): ``balanced_softmax`` adds the logarithm of a
    class's share of the site's images to its logit in the loss, so that sites with other shares learn the same;
    ``weighted_loss`` weighs a class by the inverse of that share; ``federation_weights`` by the inverse of its share of
    all sites' images, which have to send how many they have; ``fedlc`` subtracts a margin from the logit;
    ``weighted_sampler`` draws images of rare classes more often, with replacement."""
    fedlc_tau: float = Field(default=0.5, gt=0, le=1000)
    """tau of ``fedlc`` (Zhang et al. 2022, arXiv:2209.00189): the margin of a class with n training images at the site
    is tau / n^(1/4)."""


Penalty = Annotated[float, Field(gt=0, le=1e6)]


class Head(Strict):
    """The classifier before the first round and after the last: trained, or solved in closed form.

    The closed form follows from sums of features that the sites send (`pt_peft.experiment.statistics`).
    """

    start: Literal["seed", "zeros", Kind] = "seed"
    """``seed``: a weight drawn by the seed, a bias of zero; ``zeros``; ``ridge``: the ridge regression of the classes
    on the features, in which all classes weigh alike; ``lda``: Fisher's linear discriminant with one covariance for all
    classes and uniform priors (`pt_peft.statistics.closed_form`). With ``ridge`` or ``lda`` ``federation.rounds`` may
    be 0: the job is then done."""
    finish: Literal["trained", Kind] = "trained"
    """``trained``: the classifier of the last round; ``ridge`` or ``lda``: solved anew on the features that the rounds
    have made."""
    penalties: tuple[Penalty, ...] = Field(default=(0.0001, 0.001, 0.01, 0.1, 1.0), min_length=1, max_length=20)
    """The penalties of which one is chosen: for ``ridge`` of a squared weight, relative to the mean weight of an image;
    for ``lda`` the share, at most 1, by which the covariance is shrunk towards its mean diagonal. The best by
    ``select_by`` on all sites' images together is taken; ``auroc`` is the mean over sites. Of equal ones it is the
    largest, and without any images to choose by the middle one, of two the smaller."""
    choose_by: Literal["validation", "leave_one_out"] = "validation"
    """The images to choose by: the sites' validation images, or their training images, each by the head that all images
    but this one give, exactly."""
    temperature: bool = True
    """Whether the classifier's logits are divided by the temperature that makes its probabilities say how often it is
    right on the images to choose by (Guo et al. 2017, arXiv:1706.04599). What it predicts stays the same."""


class Federation(Strict):
    """Rounds, sites, quorum and deadlines."""

    rounds: int = Field(default=3, ge=0, le=100_000)
    """Rounds of training and aggregation; 0 with a classifier that ``head.start`` solves, which is then the result."""
    min_sites: int = Field(default=2, ge=1)
    """Quorum: valid results that a round needs. With fewer the job stops, with a checkpoint."""
    round_timeout_s: int = Field(default=3600, ge=1, le=10**7)
    """Deadline of a round at the server in seconds; sites that have not answered by then are left out of it."""
    site_timeout_s: int = Field(default=1800, ge=1, le=10**7)
    """Deadline of a site's own work in a round in seconds; a site that hangs gives up the round and takes part in the
    next."""
    silence_s: int = Field(default=180, ge=30, le=10**7)
    """Seconds without a sign of life, which a site gives every ten seconds also while it trains, after which a round
    ends without it if ``min_sites`` others have answered. Later rounds do not wait for it until it is heard of again.
    The default outlasts a line that is cut for a minute, with what TCP takes to notice that it is back."""
    sites: tuple[SiteName, ...] = ()
    """Names of the sites; empty takes those that FLARE starts (``-n``) or that are connected."""
    max_images: int = Field(default=100_000, ge=1, le=10**8)
    """Most training images that a site may say it has, which is its weight in a mean by ``samples``. A site that says
    more is left out of the round."""
    code: Literal["any", "same"] = "any"
    """Results of sites that run other code than the server (`pt_peft.environment.Code`): ``any`` takes them and shows
    which, so that hosts can be upgraded one after the other while a job runs; ``same`` leaves those sites out."""
    lora_ranks: dict[SiteName, Annotated[int, Field(ge=1, le=1024)]] = Field(default={})
    """Ranks of sites that train LoRA at a smaller rank than the method's; they exchange that many components."""

    @field_validator("sites")
    @classmethod
    def _distinct_sites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("site names must differ from one another")
        return value

    @field_validator("sites")
    @classmethod
    def _no_server(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "server" in value:
            raise ValueError("'server' is the server's own name")
        return value


class ModelSpec(Strict):
    """The part of an experiment that defines its model; every adapter file carries it."""

    seed: int = Field(ge=0, lt=2**31)
    """Seed that draws the head and the adapters before the first round."""
    backbone: Backbone
    """The frozen backbone."""
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=1000)
    """Class names in the order of the head's outputs."""
    task: Task = "multiclass"
    """How logits become probabilities: one softmax, or for ``multilabel`` one sigmoid for each class."""
    method: Method
    """The PEFT method."""
