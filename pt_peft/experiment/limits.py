"""The section ``limits`` of `site.json`: what a site allows jobs to ask of it.

The defaults keep single images in, also from a lead who writes the job for that: a job has to train on many images, for
several steps, with several sites, on a model whose input is that of the site's own weights. And they keep a job from
taking all of a machine. A site is asked before anything is allocated or trained, and again before anything leaves.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pt_peft.errors import OutsideLimits
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import stage_bytes, stages
from pt_peft.schema import Strict

FULL = "full"
"""The method that trains every tensor, embeddings among them."""
METHODS = (
    *("adaptformer", "bitfit", "boft", "c3a", "delora", "dora", "dvpt", "fourierft", "gralora", "hira", "houlsby"),
    *("hra", "ia3", "linear_probe", "loha", "lokr", "lora", "lora_vpt", "miss", "norm", "oft", "pissa", "pixel_prompt"),
    *("randlora", "road", "rslora", "sba", "ssf", "vera", "vpt_deep", "vpt_shallow", "waveft"),
)
"""The methods that come with this package, but for `FULL`."""
BACKBONE_KWARGS = (
    *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values"),
    *("class_token", "reg_tokens", "no_embed_class", "pre_norm"),
    *("act_layer", "mlp_layer", "dynamic_img_size"),
)
"""Arguments of timm's Vision Transformers whose values show in the tensors of a weights file, which then refuse others;
and ``num_heads``, without which no size but a published one can be said.

Not among them are those that change what pinned weights compute and leave no trace in them: rates of dropout, of which
1 makes every block the identity, norms that can be left out, pooling, and what lets the number of patches vary. Of
``act_layer`` and ``mlp_layer`` an experiment can name published ViTs' alone (`pt_peft.experiment.sections.LAYERS`), and
``dynamic_img_size`` changes nothing."""
QUORUM = 2
"""Results that a round must have, so that no aggregate is one site's."""
BETTER_SITES = 3
"""Better as ``min_sites`` where there are so many sites: of two each can tell the other's update from the mean."""
GB = 10**9
Names = Annotated[tuple[str, ...], Field(strict=False)]
"""A list in JSON. Not strict, as the section may have been null, which is settled on values that have been read."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Footprint:
    """What a model takes, told by its shapes alone."""

    patches: int
    """Patches that an image is cut into."""
    memory: int
    """Bytes of its tensors, and of a training step or an evaluation, whichever takes more."""


class Limits(Strict):
    """Bounds on jobs. A job cannot change them.

    A field that is null allows anything; ``"limits": null`` switches all of them off.
    """

    methods: Names | None = METHODS
    """Names of allowed methods; a job with ``lora+norm`` needs both. ``full`` is allowed only where it is listed."""
    min_train_images: int | None = Field(default=50, ge=1)
    """Fewest training images of a round, after all that makes them fewer: partition, ``data.images_per_site``,
    ``data.max_images_per_site``. Under ``training.imbalance`` ``federation_weights``, whose weights follow from counts
    that the server sends, so many must be left after weighing: (Σ w)² / Σ w² (Kish 1965)."""
    min_steps: int | None = Field(default=2, ge=1)
    """Fewest steps of the optimiser between two looks at the model: what one step changes is a gradient. With a tiny
    learning rate all steps are taken at the same point, and AdamW's are functions of the gradients there: more steps
    blur only what they move."""
    min_sites: int | None = Field(default=2, ge=1)
    """Fewest sites that take part in the job: it is deployed to them, by FLARE's word, all with the same app, and they
    are in ``federation.sites`` if that names any. 3 is better: of two sites each can tell the other's update from the
    mean. ``federation.min_sites``, the quorum, which the lead has signed, must be 2 at least where this is 2 or more:
    no round is then one site's alone, and three sites can spare one. With ``federation.lora_ranks`` the same holds for
    the sites that train all components that any site trains. A site that is named there with the whole rank is one of
    them, where ``method.options`` say the rank."""
    min_evaluated_images: int | None = Field(default=10, ge=1)
    """A validation or test split with fewer images is not evaluated: its counts would tell single images."""
    min_images_per_class: int | None = Field(default=5, ge=1)
    """A class with fewer training images is left out of the sums of features that the site sends for a classifier in
    closed form (section ``head``), and of its counts: the sum of a single image's features is that image's.
    No count of image statistics is of fewer images, but 0."""
    image_statistics: bool | None = True
    """Whether a job may have the images counted: by split, class, size, brightness and contrast. If false,
    these counts stay at the site."""
    control_variates: bool | None = False
    """Whether ``training.control_variates`` is allowed: they are mean gradients, as no optimiser has changed them."""
    pinned_backbone: bool | None = True
    """Whether the backbone must be that of the weights file: all its tensors but the classifier are in the file, the
    patch embedding in its own patch size, and none in the file stays unused but heads (``backbone.allow_missing`` and
    ``allow_unused`` excuse nothing then). What makes tokens of images does not train: the patch embedding, the position
    embedding, class and register tokens; only ``full`` trains them, where ``methods`` lists it. Vectors that all
    patches share, such as the bias of the patch embedding, may train. ``backbone.mean`` and ``std`` are free: they are
    the same map of each number of a pixel for all images, and mix no two of them."""
    min_patches: int | None = Field(default=16, ge=1)
    """Fewest patches of an image: the embedding of a single patch could hold all of it."""
    backbone_kwargs: Names | None = BACKBONE_KWARGS
    """Names that ``backbone.kwargs`` may have."""
    secret_draws: bool | None = True
    """Whether the site draws from randomness of its own what its training leaves to chance: the order of images,
    augmentation, dropout, weighted sampling, all noise. Nobody else then knows which image was in which step, or what
    of it was masked. If false, the experiment's seed, which everybody has, draws them, and a run can be repeated bit by
    bit: for simulations and tests."""
    own_model_stays: bool | None = True
    """Whether the site's own model of its last round stays at the site. FLARE's cross-site evaluation asks for it
    (``submit_model``) and sends it to all other sites, from which the aggregate hides it. If false, it may leave."""
    backbones: Annotated[tuple[Digest, ...], Field(strict=False)] | None = None
    """SHA-256 of the weights files that a job may use."""
    max_epsilon: float | None = Field(default=None, gt=0)
    """The most that all jobs together may cost, by what the site does itself (see `pt_peft.privacy.budget`), at the
    experiment's delta: for each training image with ``privacy.sample``, else by the site's own share of the noise on
    its update."""
    bytes_per_round: int | None = Field(default=100_000_000, ge=1)
    """Most bytes of tensors, or of their ciphertexts, that leave in a round."""
    max_rounds: int | None = Field(default=1000, ge=1)
    """Most ``federation.rounds``."""
    max_local_epochs: int | None = Field(default=100, ge=1)
    """Most ``training.local_epochs``."""
    max_round_seconds: int | None = Field(default=21_600, ge=1)
    """Most ``federation.site_timeout_s``, at which the site stops a round's work."""
    max_job_seconds: int | None = Field(default=604_800, ge=1)
    """Most seconds that the site works for one job, by its own clock and over restarts; also the most
    ``federation.round_timeout_s``."""
    max_memory_gb: float | None = Field(default=16.0, gt=0)
    """Most memory of the model, 10^9 bytes, told from shapes: weights, gradients, the optimiser's state, and what the
    images of a batch take in a step. It counts the GPU's memory where the model is on one. At the server: of the
    weights."""
    max_job_gb: float | None = Field(default=10.0, gt=0)
    """Most disk, 10^9 bytes, of the job's folder at the site; ``cache_gb`` bounds the cache."""

    @classmethod
    def open(cls) -> "Limits":
        """Limits that allow anything."""
        return cls(**dict.fromkeys(cls.model_fields))  # pyright: ignore[reportArgumentType]  # null, for every field

    def of_memory(self) -> "Limits":
        """These limits of memory alone, for a server, which gives nothing of its own."""
        return Limits.open().model_copy(update={"max_memory_gb": self.max_memory_gb})

    def check(self, experiment: Experiment) -> None:
        """Raises the first OutsideLimits of `refusals`, if there is one."""
        _raise_first(self.refusals(experiment))

    def refusals(self, experiment: Experiment) -> Iterator[OutsideLimits]:
        """Yields all in which what `experiment` says by itself is outside the limits."""
        if self.methods is not None:
            for name in experiment.method.name.split("+"):
                if name not in self.methods:
                    yield _refused("methods", f"method {name}", f"allowed: {', '.join(self.methods) or 'none'}")
        if self.control_variates is False and experiment.training.control_variates:
            yield _refused("control_variates", "training.control_variates", "they are mean gradients")
        if self.backbone_kwargs is not None:
            for name in experiment.backbone.kwargs:
                if name not in self.backbone_kwargs:
                    allowed = f"allowed: {', '.join(self.backbone_kwargs) or 'none'}"
                    yield _refused("backbone_kwargs", f"'{name}' in backbone.kwargs", allowed)
        if self.backbones is not None and experiment.backbone.sha256 not in self.backbones:
            yield _refused(
                "backbones", f"backbone weights of digest {experiment.backbone.sha256}", "which the site does not know"
            )
        federation = experiment.federation
        quorum = self.min_sites and min(self.min_sites, QUORUM)
        yield from _at_least("min_sites", federation.min_sites, quorum, "{} sites in federation.min_sites")
        yield from _at_most("max_rounds", federation.rounds, self.max_rounds, "{} rounds")
        epochs = experiment.training.local_epochs
        yield from _at_most("max_local_epochs", epochs, self.max_local_epochs, "{} local epochs")
        seconds = "a site_timeout_s of {}", "a round_timeout_s of {}"
        yield from _at_most("max_round_seconds", federation.site_timeout_s, self.max_round_seconds, seconds[0])
        yield from _at_most("max_job_seconds", federation.round_timeout_s, self.max_job_seconds, seconds[1])
        if self.max_epsilon is not None:
            asked = None
            if not experiment.privacy.asked:
                asked = "training without differential privacy"
            elif not experiment.privacy.claimed:
                asked = "noise that everybody can compute from the experiment"
            elif not experiment.privacy.by_sites:
                asked = "differential privacy by noise that only the server adds"
            if asked:
                allowed = f"epsilon at most {self.max_epsilon:g} is asked for, by noise of the site's own"
                yield _refused("max_epsilon", asked, allowed)

    def check_deployment(self, experiment: Experiment, sites: Collection[str], apps: int) -> None:
        """Raises the first OutsideLimits of `deployment_refusals`, if there is one."""
        _raise_first(self.deployment_refusals(experiment, sites, apps))

    def deployment_refusals(
        self, experiment: Experiment, sites: Collection[str] | None, apps: int
    ) -> Iterator[OutsideLimits]:
        """Yields why too few sites take part in a job or in a part of its model, or with different apps.

        Args:
            experiment: the job's.
            sites: names of the sites that the job is deployed to; None if they are not known yet.
            apps: number of the job's apps: with several, the sites or the server may have different experiments.
        """
        if self.min_sites is None:
            return
        federation = experiment.federation
        if sites is not None:
            yield from _at_least("min_sites", len(sites), self.min_sites, "a job that is deployed to {} site(s)")
            taking_part = {site for site in sites if site in (federation.sites or sites)}
            if len(taking_part) < len(sites):
                what = "a job in which {} of its sites take part"
                yield from _at_least("min_sites", len(taking_part), self.min_sites, what)
            yield from self._rank_refusals(experiment, taking_part)
        if self.min_sites > 1 and apps != 1:
            yield _refused("min_sites", f"a job of {apps} apps", "allowed: 1")

    def _rank_refusals(self, experiment: Experiment, sites: Collection[str]) -> Iterator[OutsideLimits]:
        """Yields why LoRA components would be those of too few sites."""
        federation = experiment.federation
        if self.min_sites is None or not federation.lora_ranks or not sites:
            return
        method = experiment.method
        rank = method.options.get(method.name, {}).get("rank")
        full = rank if isinstance(rank, int) else math.inf  # where it is not said, a site that is named trains fewer
        ranks = [federation.lora_ranks.get(site, full) for site in sites]
        fewer = sum(rank < max(ranks) for rank in ranks)
        what = "components of federation.lora_ranks that {} site(s) train"
        yield from _at_least("min_sites", len(ranks) - fewer, self.min_sites, what)
        # The others may be all of those that a round lacks.
        yield from _at_least(
            "min_sites", federation.min_sites - fewer, min(self.min_sites, QUORUM), f"{what} in a round"
        )

    def footprint_refusals(self, found: Footprint) -> Iterator[OutsideLimits]:
        """Yields why a model has too few patches, or takes too much memory to train."""
        yield from _at_least("min_patches", found.patches, self.min_patches, "images of {} patch(es)")
        yield from self.memory_refusals(found.memory)

    def memory_refusals(self, nbytes: int) -> Iterator[OutsideLimits]:
        """Yields why a model takes more memory than allowed."""
        if self.max_memory_gb is not None and nbytes > self.max_memory_gb * GB:
            yield _refused("max_memory_gb", f"{_gb(nbytes)} GB of memory", f"allowed: {self.max_memory_gb:g}")

    def backbone_refusals(
        self, missing: Collection[str], left_over: Collection[str], same_patches: bool
    ) -> Iterator[OutsideLimits]:
        """Yields why the backbone is not that of the weights file.

        Args:
            missing: the model's tensors that the file does not have.
            left_over: the file's tensors that the model does not have.
            same_patches: whether the file's patches have the model's size, so that their embedding was not resampled.
        """
        if not self.pinned_backbone:
            return
        for key in missing:
            yield _refused("pinned_backbone", f"tensor '{key}' from the seed", "allowed: from the weights file")
        for key in left_over:
            yield _refused(
                "pinned_backbone", f"a model without tensor '{key}'", "allowed: with all of the weights file"
            )
        if not same_patches:
            yield _refused("pinned_backbone", "another patch size", "allowed: that of the weights file")

    def check_exchange(self, experiment: Experiment, exchange: Exchange) -> None:
        """Raises the first OutsideLimits of `exchange_refusals`, if there is one."""
        _raise_first(self.exchange_refusals(experiment, exchange))

    def exchange_refusals(self, experiment: Experiment, exchange: Exchange) -> Iterator[OutsideLimits]:
        """Yields why embeddings would train and travel: their gradients hold images, patch by patch."""
        listed = self.methods is not None and FULL in self.methods and FULL in experiment.method.name.split("+")
        if not self.pinned_backbone or listed:
            return
        for key, spec in exchange.specs.items():
            if is_embedding(key.rpartition("/")[2], spec.shape):
                yield _refused(
                    "pinned_backbone", f"training of tensor '{key}'", "allowed: by method full, where it is listed"
                )

    def check_images(self, experiment: Experiment, images: int) -> None:
        """Raises the first OutsideLimits of `image_refusals`, if there is one."""
        _raise_first(self.image_refusals(experiment, images))

    def image_refusals(self, experiment: Experiment, images: int) -> Iterator[OutsideLimits]:
        """Yields why a round has too few training images, or makes too few steps of them."""
        yield from _at_least("min_train_images", images, self.min_train_images, "a round on {} training image(s)")
        if not experiment.federation.rounds:
            return
        steps = math.ceil(images / experiment.training.batch_size) * experiment.training.local_epochs
        yield from _at_least("min_steps", steps, self.min_steps, "a round of {} step(s)")

    def check_weighed(self, images: int) -> None:
        """Raises OutsideLimits if training weighs a few images so much that it is as if there were no others.

        Args:
            images: how many of equal weight would have a mean as blurred.
        """
        what = "a round whose weights make {} image(s) of all"
        _raise_first(_at_least("min_train_images", images, self.min_train_images, what))

    def check_evaluated(self, images: int) -> None:
        """Raises OutsideLimits if metrics of so few images would leave."""
        _raise_first(_at_least("min_evaluated_images", images, self.min_evaluated_images, "metrics of {} image(s)"))

    def image_statistics_refusals(self) -> Iterator[OutsideLimits]:
        """Yields why the site's images may not be counted."""
        if self.image_statistics is False:
            yield _refused("image_statistics", "counts of the site's images", "they stay at the site")

    @property
    def least_counted(self) -> int:
        """Fewest images of a class that are counted or summed."""
        return self.min_images_per_class or 1

    def least_in_split(self, split: str) -> int:
        """Fewest images of a split that is counted."""
        least = self.min_train_images if split == "train" else self.min_evaluated_images
        return max(least or 1, self.least_counted)

    def check_own_model(self) -> None:
        """Raises OutsideLimits if the site's own model may not leave."""
        if self.own_model_stays:
            raise OutsideLimits("own_model_stays", "the site's own model", "only false there lets it leave")

    def check_bytes(self, experiment: Experiment, exchange: Exchange, round_number: int) -> None:
        """Raises the OutsideLimits of `bytes_refusals`, if there is one."""
        _raise_first(self.bytes_refusals(experiment, exchange, round_number))

    def bytes_refusals(self, experiment: Experiment, exchange: Exchange, round_number: int) -> Iterator[OutsideLimits]:
        """Yields why the payload that leaves in a round, as it travels, has more bytes than the limit."""
        encrypted = experiment.encryption is not None
        yield from self._nbytes_refusals(
            round_bytes(exchange, experiment.payload, round_number, encrypted=encrypted).up
        )

    def check_sums(self, images: int) -> None:
        """Raises OutsideLimits if sums of so few training images would leave."""
        least = max(1, self.min_train_images or 1)
        _raise_first(_at_least("min_train_images", images, least, "sums over {} training image(s)"))

    def stage_refusals(self, experiment: Experiment, exchange: Exchange) -> Iterator[OutsideLimits]:
        """Yields why the statistics that leave in a stage have more bytes than the limit of a round."""
        for stage in stages(experiment):
            yield from self._nbytes_refusals(stage_bytes(experiment, exchange, stage).up)

    def check_nbytes(self, nbytes: int) -> None:
        """Raises OutsideLimits if so many bytes at once are more than the limit of a round."""
        _raise_first(self._nbytes_refusals(nbytes))

    def _nbytes_refusals(self, nbytes: int) -> Iterator[OutsideLimits]:
        yield from _at_most("bytes_per_round", nbytes, self.bytes_per_round, "{} bytes a round")

    def check_seconds(self, worked: float) -> None:
        """Raises OutsideLimits if the site has worked for a job as long as it may."""
        if self.max_job_seconds is not None and worked >= self.max_job_seconds:
            asked = f"more than the {worked:.0f} seconds that the site has worked for it"
            raise _refused("max_job_seconds", asked, f"allowed: {self.max_job_seconds}")

    def check_disk(self, nbytes: int) -> None:
        """Raises OutsideLimits if the folder of a job has become larger than allowed."""
        if self.max_job_gb is not None and nbytes > self.max_job_gb * GB:
            raise _refused("max_job_gb", f"{_gb(nbytes)} GB of disk", f"allowed: {self.max_job_gb:g}")


def is_embedding(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor takes part in making tokens of images in another way than alike for all of them.

    Outside the blocks and the head those are all tensors of more than one dimension: the patch embedding's weight, the
    position embedding, class and register tokens, a frame of pixels. Their gradients keep patches, or places, apart. A
    vector's gradient is a sum over all patches of all images.

    Args:
        key: canonical key.
        shape: the tensor's.
    """
    return not key.startswith(("blocks.", "head.")) and len(shape) > 1


def _at_least(field: str, asked: int, least: int | None, what: str) -> Iterator[OutsideLimits]:
    if least is not None and asked < least:
        yield _refused(field, what.format(asked), f"allowed: at least {least}")


def _at_most(field: str, asked: int, most: int | None, what: str) -> Iterator[OutsideLimits]:
    if most is not None and asked > most:
        yield _refused(field, what.format(asked), f"allowed: {most}")


def _raise_first(refusals: Iterator[OutsideLimits]) -> None:
    for refusal in refusals:
        raise refusal


def _gb(nbytes: int) -> str:
    return f"{nbytes / GB:.3g}"


def _refused(field: str, asked: str, allowed: str) -> OutsideLimits:
    return OutsideLimits(field, asked, allowed)
