"""The section ``privacy`` of `experiment.json`: differential privacy for images, for sites, or both."""

from typing import Annotated, Literal

from pydantic import Field

from pt_peft.schema import Strict

NoiseMultiplier = Annotated[float, Field(ge=0.1, le=1000)]
Norm = Annotated[float, Field(ge=1e-6, le=1e6)]
Delta = Annotated[float, Field(ge=1e-15, le=1e-3)]


class SamplePrivacy(Strict):
    """Protects each training image by DP-SGD on all trained tensors (Abadi et al. 2016, arXiv:1607.00133)."""

    noise_multiplier: NoiseMultiplier
    """Standard deviation of the Gaussian noise on the sum of clipped gradients, over ``max_grad_norm``."""
    max_grad_norm: Norm
    """Euclidean norm to which each image's gradient, over all tensors that train together, is clipped."""
    delta: Delta
    """delta of (epsilon, delta); must be below 1 / training images at every site."""
    accountant: Literal["rdp", "prv"] = "rdp"
    """``rdp``: Rényi divergences (Mironov et al. 2019, arXiv:1908.10530); ``prv``: privacy loss variables (Gopi et al.
    2021, arXiv:2106.02848), tighter, which needs Opacus at the sites."""


class StatisticsPrivacy(Strict):
    """Protects each training image by noise on sums of features (`pt_peft.privacy.private_moments`).

    Each site adds all of this noise to each of its releases: one before the first round if ``head.start`` is ``lda``,
    one after the last if ``head.finish`` is.
    """

    noise_multiplier: NoiseMultiplier
    """Standard deviation of the Gaussian noise over the sums' sensitivity, which is the square root of 3."""
    max_feature_norm: Norm
    """Euclidean norm to which each image's features, those that enter the classifier, are clipped. They come from a
    LayerNorm of weight g and bias b, so that all have about the norm sqrt(|g|² + |b|²), which the backbone's file
    tells."""
    delta: Delta
    """delta of (epsilon, delta); must be below 1 / training images at every site, and that of ``sample`` if that is
    set."""
    projection: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Dimensions to which the features are projected, by a matrix that the seed draws; null: none. Fewer dimensions
    have less noise; in our measurement that gained nothing beyond the spread."""


class ClientPrivacy(Strict):
    """Protects all images of a site together by DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963), without sampling."""

    noise_multiplier: NoiseMultiplier
    """Standard deviation of the Gaussian noise on the sum of clipped updates, over ``max_update_norm``."""
    max_update_norm: Norm
    """Euclidean norm to which a site's update of a round, all tensors together, is clipped."""
    delta: Delta
    """delta of (epsilon, delta)."""
    where: Literal["server", "sites"]
    """``server``: the server clips and adds the noise, and sees the updates without it. ``sites``: each site clips and
    adds 1 / ``federation.min_sites`` of the noise's variance, so that so many honest sites give all of it."""

    def share(self, min_sites: int) -> float:
        """The noise multiplier of one site's own noise."""
        return self.noise_multiplier / min_sites**0.5


class Privacy(Strict):
    """Kinds of differential privacy.

    ``sample`` and ``statistics`` together are one guarantee for single images, whose costs add up; ``client`` is
    another, with an epsilon of its own.
    """

    sample: SamplePrivacy | None = None
    """Privacy of single images in rounds of training; null: none."""
    statistics: StatisticsPrivacy | None = None
    """Privacy of single images in the sums from which a classifier is solved (section ``head``); null: none."""
    client: ClientPrivacy | None = None
    """Privacy of whole sites; null: none."""
    randomness: Literal["secret", "insecure_from_public_seed"] = "secret"
    """Source of noise and batches. ``insecure_from_public_seed`` is for tests: runs are repeatable, everybody who has
    the experiment can subtract the noise, and no privacy is claimed."""

    @property
    def asked(self) -> bool:
        """Whether the experiment asks for any privacy."""
        return self.of_images or self.client is not None

    @property
    def of_images(self) -> bool:
        """Whether single images are protected, by noise of the site's own."""
        return self.sample is not None or self.statistics is not None

    @property
    def claimed(self) -> bool:
        """Whether an epsilon may be named."""
        return self.asked and self.randomness == "secret"

    @property
    def by_sites(self) -> bool:
        """Whether each site ensures privacy itself, without trust in the server."""
        return self.of_images or (self.client is not None and self.client.where == "sites")
