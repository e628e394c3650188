"""Everything a run depends on: the schema of `experiment.json`."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from pt_peft import schema
from pt_peft.encryption.compatible import unreadable_by_server
from pt_peft.exchange.aggregation import Aggregation
from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.exchange.codecs import Payload
from pt_peft.exchange.server_optimizers import ServerOptimizer
from pt_peft.exchange.server_optimizers.none import NoOptimizer
from pt_peft.experiment.encryption import Encryption
from pt_peft.experiment.privacy import Privacy
from pt_peft.privacy.compatible import broken_by
from pt_peft.schema import Strict

Images = Annotated[int, Field(ge=1, le=10**7)]
ChannelMean = Annotated[float, Field(ge=-10, le=10)]
Std = Annotated[float, Field(ge=1e-3, le=10)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Task = Literal["multiclass", "multilabel", "ordinal"]
"""What labels are: one class of several; any number of classes; one grade of an order."""
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
"""Of names, with ``*``, ``?`` and ``[…]`` as in `fnmatch`."""
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$")]
"""Becomes a folder and an address in FLARE."""

PUBLISHED = ("ham10000", "isic2019", "fed_isic2019")
"""Data sets read in their published layouts, see `pt_peft.data.published`."""

FIXED_KWARGS = ("img_size", "num_classes", "in_chans", "checkpoint_path", "cache_dir", "scriptable", "exportable")
"""What ``timm.create_model`` may not be told: it follows from other fields, or would read files of the site's."""

MAX_DEPTH = 256
"""Blocks of a backbone; a typing error of more would fill a site's memory."""


class Backbone(Strict):
    """The Vision Transformer all sites start from."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")
    """timm architecture, e.g. ``vit_tiny_patch16_224``; no ``hf-hub:`` or ``local-dir:``, which would reach out."""
    kwargs: dict[str, JsonValue] = {}
    """Arguments passed on to ``timm.create_model``."""
    image_size: int = Field(ge=16, le=1024)
    """Side of the square input, pixels; position embeddings are resampled to it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the weights file. A site whose file differs refuses to train."""
    mean: tuple[ChannelMean, ChannelMean, ChannelMean] = (0.5, 0.5, 0.5)
    """Subtracted from each channel of images scaled to [0, 1]."""
    std: tuple[Std, Std, Std] = (0.5, 0.5, 0.5)
    """Divides each channel after that."""
    allow_missing: tuple[Pattern, ...] = ()
    """Tensors that the weights file need not have, as patterns of timm's keys such as ``fc_norm.*``. They keep a start that
    the seed draws, the same at every site."""
    allow_unused: tuple[Pattern, ...] = ()
    """Tensors of the weights file that may be left over, as patterns of their names there. Heads always may."""

    @field_validator("kwargs")
    @classmethod
    def _allowed_kwargs(cls, value: dict) -> dict:
        for name in value:
            if name in FIXED_KWARGS or name.startswith("pretrained"):
                raise ValueError(f"'{name}' may not be set here")
        depth = value.get("depth", 1)
        if not (isinstance(depth, int) and 1 <= depth <= MAX_DEPTH):
            raise ValueError(f"'depth' must be a number of blocks from 1 to {MAX_DEPTH}")
        return value


class Columns(Strict):
    """Names of the columns of a site's CSV table. A column set to null is not used."""

    file: Name = "file"
    """Path of the image inside the folder or zip archive."""
    label: Name = "label"
    """Class name, one of ``data.classes``; for ``multilabel`` names joined by ``|``, or nothing."""
    split: Name | None = "split"
    """``train``, ``val`` or ``test``."""
    group: Name | None = None
    """Patient or lesion: its images stay in one split."""
    site: Name | None = None
    """The site an image came from, for ``partition.kind = natural``."""


class Data(Strict):
    """What the images are. Where they lie is each site's own business (`site.json`)."""

    source: Literal["lesions", "csv", "image_folder", "npz", "ham10000", "isic2019", "fed_isic2019"]
    """``lesions``: the embedded generator; ``csv``: a table beside a folder or zip of images; ``image_folder``: a folder or zip
    with a sub-folder for each class, below train, val and test or not; ``npz``: MedMNIST's; the others: as published."""
    task: Task = "multiclass"
    """``multilabel`` trains with binary cross-entropy, a sigmoid an output; ``ordinal`` as ``multiclass``, with the metrics of
    graded labels besides."""
    classes: tuple[Name, ...] = Field(min_length=2, max_length=1000)
    """Class names in the order of the head's outputs; of ``ordinal`` in their order."""
    columns: Columns = Columns()
    """Used by ``csv``."""
    no_finding: Name | None = None
    """What the label column of a ``multilabel`` table says where none of the classes applies, besides nothing."""
    intensity: Literal["type", "image"] = "type"
    """What becomes 0 … 255 of 16-bit grey images: the whole range of their type, or each image's own lowest to highest value
    (12-bit data in 16-bit files would be nearly black)."""
    images_per_site: dict[Literal["train", "val", "test"], Images] = {"train": 256, "val": 128, "test": 256}
    """Images a site draws in each split; used by ``lesions``."""
    max_images_per_site: dict[Literal["train", "val", "test"], Images] = {}
    """The most images of a split that a site uses, drawn by the seed from all that it has; used by the other sources."""
    augment: tuple[Literal["flip", "rotate90", "intensity"], ...] = ()
    """Random transforms of the training images, drawn anew for every batch."""
    test_time_flips: Literal["none", "horizontal", "all"] = "none"
    """Evaluation takes the mean logits of the image and its mirror image, or its four flips."""

    @field_validator("images_per_site")
    @classmethod
    def _some_to_train(cls, value: dict) -> dict:
        if "train" not in value:
            raise ValueError("'train' must be among the splits")
        return value

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must differ from one another")
        return value

    @model_validator(mode="after")
    def _source_has_such_labels(self) -> "Data":
        if self.task == "multilabel" and self.source not in ("csv", "npz"):
            raise ValueError(
                f"task 'multilabel' needs source 'csv' or 'npz'; '{self.source}' gives each image one label"
            )
        if self.no_finding is not None and (self.task != "multilabel" or self.no_finding in self.classes):
            raise ValueError("no_finding is for task 'multilabel', and none of the classes")
        return self


Strength = Annotated[float, Field(ge=0, le=2)]


class FeatureShift(Strict):
    """How far the looks of sites differ: strengths, 0 for none, 1 for what different devices may do. Every site draws its own
    change once, see `pt_peft.data.feature_shift`.
    """

    intensity: Strength = 0.0
    """Of the gamma curve."""
    colour: Strength = 0.0
    """Of each channel's gain."""
    stain: Strength = 0.0
    """Of haematoxylin, eosin and DAB, for histology."""
    blur: Strength = 0.0
    """Of the focus."""


class Partition(Strict):
    """Which images each simulated site has, and how they look."""

    kind: Literal["none", "iid", "natural", "dirichlet", "shards", "quantity"] = "none"
    """``none``: a site has all it was given (real federations, ``lesions``); ``iid``: an equal random share; ``natural``: the
    images whose ``data.columns.site`` is the site's name; ``dirichlet``: label skew; ``shards``: a few classes a site;
    ``quantity``: the same mix in very different numbers."""
    alpha: float = Field(default=0.5, gt=0, le=10_000)
    """Of ``dirichlet``: at 0.05 most classes are at one or two sites, at 100 nearly IID."""
    classes_per_site: int = Field(default=2, ge=1, le=1000)
    """Of ``shards``."""
    exponent: float = Field(default=1.0, ge=0, le=10)
    """Of ``quantity``: the i-th site's size is proportional to i ** -exponent."""
    iid_share: float = Field(default=0.0, ge=0, le=1)
    """Part of the images that the three skewed kinds deal equally: a mixture of both."""
    min_images: int = Field(default=1, ge=0, le=10**6)
    """Training images that every site has; the skewed kinds move as few as needed from the largest sites."""
    feature_shift: FeatureShift | None = None
    """With any kind: a change of every image of a site, in all splits."""


Role = Literal["exchanged", "local", "frozen"]
"""What becomes of a tensor: ``exchanged`` trains and travels; ``local`` trains and stays at its site; ``frozen`` keeps its
start, the same at all sites."""


class Method(Strict):
    """The PEFT method: a name of the registry, or several joined by ``+``."""

    name: str = Field(min_length=1, max_length=200)
    options: dict[str, dict[str, JsonValue]] = {}
    """Per component method, its own fields, e.g. ``{"lora": {"rank": 4}}``."""
    head: Role = "exchanged"
    """The classifier's."""
    roles: dict[Pattern, Role] = {}
    """Of the method's own tensors, by patterns of their keys; the others are exchanged. ``{"*.lora_A": "frozen"}`` is FFA-LoRA
    (Sun et al. 2024, arXiv:2403.12313), ``{"*.lora_B": "local"}`` is FedSA-LoRA (Guo et al. 2025, arXiv:2410.01463)."""


class Training(Strict):
    """Local training in a round."""

    batch_size: int = Field(default=32, ge=1, le=4096)
    """Images a step."""
    local_epochs: int = Field(default=1, ge=1, le=1000)
    """Passes over the site's training images a round."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Peak AdamW step size for adapters."""
    head_learning_rate: float | None = Field(default=None, gt=0, le=10)
    """AdamW step size for the head; null takes ``learning_rate``."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled, on tensors of two or more dimensions."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """``cosine`` decays from the first step of the first round to zero at the last step of the last round."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass, by autocast; tensors that train, and travel, are float32 in either case."""
    proximal: float = Field(default=0.0, ge=0, le=1000)
    """mu of FedProx (Li et al. 2020, arXiv:1812.06127): adds mu/2 times the squared distance of the exchanged tensors from where
    the round started to the loss."""
    control_variates: bool = False
    """SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378): each step's gradient is corrected by how much the site's mean gradient
    differs from all sites'. Doubles what travels. See `pt_peft.federation.local_round`."""
    ditto: float = Field(default=0.0, ge=0, le=1000)
    """lambda of Ditto (Li et al. 2021, arXiv:2012.04221): if it is not 0, each site also trains a model of its own, which is pulled
    towards the federation's like FedProx pulls; it stays at the site, and doubles its work."""
    imbalance: Literal["none", "weighted_loss", "balanced_softmax", "weighted_sampler"] = "none"
    """What is done about rare classes at a site, see `pt_peft.training.imbalance`: ``weighted_loss`` weighs a class by the inverse of
    its share of the training images; ``balanced_softmax`` adds the logarithm of that share to the logits of the loss;
    ``weighted_sampler`` draws images of rare classes more often, with replacement."""

    @model_validator(mode="after")
    def _finite_loss(self) -> "Training":
        if self.imbalance == "balanced_softmax" and self.label_smoothing:
            raise ValueError(
                "label_smoothing must be 0 with imbalance 'balanced_softmax': absent classes have no probability"
            )
        return self


class Federation(Strict):
    """Rounds, sites and what is done about those that fail."""

    rounds: int = Field(default=3, ge=1, le=100_000)
    min_sites: int = Field(default=2, ge=1)
    """Quorum: valid results needed for a round to count. With fewer the job stops with a checkpoint."""
    round_timeout_s: int = Field(default=3600, ge=1, le=10**7)
    """Deadline of a round at the server, seconds; whoever has not answered by then is left out of it."""
    site_timeout_s: int = Field(default=1800, ge=1, le=10**7)
    """Deadline of a site's own work in a round, seconds; a site that hangs gives its round up and is back for the next."""
    sites: tuple[SiteName, ...] = ()
    """Names of the sites; empty leaves it to FLARE (``-n``, or whoever is connected)."""
    lora_ranks: dict[SiteName, Annotated[int, Field(ge=1, le=1024)]] = {}
    """Of sites that train LoRA at a smaller rank than the method's; they exchange so many components."""

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

    @model_validator(mode="after")
    def _deadlines_and_quorum(self) -> "Federation":
        if self.site_timeout_s > self.round_timeout_s:
            raise ValueError(f"site_timeout_s must be at most round_timeout_s ({self.round_timeout_s})")
        if self.sites and self.min_sites > len(self.sites):
            raise ValueError(f"min_sites ({self.min_sites}) must be at most the number of sites ({len(self.sites)})")
        if self.sites and (unknown := self.lora_ranks.keys() - set(self.sites)):
            raise ValueError(f"lora_ranks names '{min(unknown)}', which is none of the sites ({', '.join(self.sites)})")
        return self


class ModelSpec(Strict):
    """The part of an experiment that its model follows from; an adapter file carries it."""

    seed: int = Field(ge=0, lt=2**31)
    """Draws the head and the adapters before the first round."""
    backbone: Backbone
    classes: tuple[Name, ...] = Field(min_length=2, max_length=1000)
    """Class names in the order of the head's outputs."""
    task: Task = "multiclass"
    """How outputs are read: a softmax, or a sigmoid each for ``multilabel``."""
    method: Method


class Experiment(Strict):
    """One run, completely: the same experiment gives the same final adapter."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]{0,99}$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    backbone: Backbone
    data: Data
    partition: Partition = Partition()
    method: Method
    training: Training = Training()
    federation: Federation = Federation()
    aggregation: Aggregation = Mean()
    """How the sites' results of a round become one."""
    server_optimizer: ServerOptimizer = NoOptimizer()
    """What the server makes of that for the next round."""
    payload: Payload = Payload()
    """How tensors are written for the way."""
    encryption: Encryption | None = None
    """Null sends tensors as they are."""
    privacy: Privacy = Privacy()
    """What noise is added for whose protection; by default none."""
    select_by: Literal["balanced_accuracy", "accuracy", "auroc", "macro_f1", "quadratic_kappa"] = "balanced_accuracy"
    """Validation metric (mean over sites) that chooses the best round."""

    @model_validator(mode="after")
    def _partition_fits_data(self) -> "Experiment":
        knows_sites = self.data.source in PUBLISHED or (self.data.source == "csv" and self.data.columns.site)
        if self.partition.kind == "natural" and not knows_sites:
            raise ValueError(
                f"partition.kind 'natural' needs data.source 'csv' with data.columns.site, or one of {', '.join(PUBLISHED)}"
            )
        if self.partition.kind != "none" and self.data.source == "lesions":
            raise ValueError(
                f"partition.kind '{self.partition.kind}' does not apply to data.source 'lesions': each site draws its own images"
            )
        return self

    @model_validator(mode="after")
    def _fits_task(self) -> "Experiment":
        if self.training.imbalance == "balanced_softmax" and self.data.task == "multilabel":
            raise ValueError(
                "training.imbalance 'balanced_softmax' needs labels that exclude one another, not 'multilabel'"
            )
        if self.select_by == "quadratic_kappa" and self.data.task != "ordinal":
            raise ValueError("select_by 'quadratic_kappa' needs data.task 'ordinal'")
        return self

    @model_validator(mode="after")
    def _quorum_fits_aggregation(self) -> "Experiment":
        needed = self.aggregation.sites_needed
        if self.federation.min_sites < needed:
            raise ValueError(
                f"aggregation '{self.aggregation.name}' needs the results of {needed} sites or more, so that federation.min_sites "
                f"must be at least {needed}; it is {self.federation.min_sites}"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_aggregation(self) -> "Experiment":
        if self.aggregation.refactors and self.server_optimizer.name != "none":
            raise ValueError(
                f"server_optimizer must be 'none' with aggregation '{self.aggregation.name}', which moves parts of an update "
                f"from one tensor to another, so that differences from round to round mean nothing; it is "
                f"'{self.server_optimizer.name}'"
            )
        return self

    @model_validator(mode="after")
    def _robust_aggregation_sees_all(self) -> "Experiment":
        if self.aggregation.robust and self.training.control_variates:
            raise ValueError(
                f"training.control_variates must be false with aggregation '{self.aggregation.name}', which is for sites that lie: "
                "control variates are averaged, and one site's would correct the gradients of all"
            )
        return self

    @model_validator(mode="after")
    def _ranks_fit_aggregation(self) -> "Experiment":
        if not self.federation.lora_ranks:
            return self
        weighting = getattr(self.aggregation, "weighting", None)
        refused = {
            f"aggregation '{self.aggregation.name}'": self.aggregation.robust,
            "aggregation.weighting 'inverse_variance'": weighting == "inverse_variance",
            f"server_optimizer '{self.server_optimizer.name}'": self.server_optimizer.name != "none",
        }
        for what, is_asked in refused.items():
            if is_asked:
                raise ValueError(
                    f"federation.lora_ranks must be empty with {what}, which would take the components that a site of a smaller rank "
                    "does not have for its opinion that they are zero"
                )
        return self

    @model_validator(mode="after")
    def _memory_fits_aggregation(self) -> "Experiment":
        if self.payload.up.remembers and not self.aggregation.keeps_components:
            raise ValueError(
                f"payload.up.error_feedback must be false with aggregation '{self.aggregation.name}', which makes LoRA's "
                "components anew in each round, so that what a site did not send of the old ones fits none of them"
            )
        return self

    @model_validator(mode="after")
    def _server_can_read_enough(self) -> "Experiment":
        if reason := unreadable_by_server(self):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _privacy_holds(self) -> "Experiment":
        if reason := broken_by(self):
            raise ValueError(reason)
        return self

    @classmethod
    def read(cls, path: Path) -> "Experiment":
        """Reads `experiment.json`. Raises UserError naming the field, the value seen and what would be right."""
        return schema.read(cls, path)

    @property
    def model(self) -> ModelSpec:
        """What its model follows from."""
        return ModelSpec(
            seed=self.seed, backbone=self.backbone, classes=self.data.classes, task=self.data.task, method=self.method
        )

    def to_json(self) -> str:
        """Indented JSON that `read` takes back, complete with defaults."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two experiments with equal digests are the same run."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
