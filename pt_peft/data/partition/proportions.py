"""The share of each class that each site should have: float64 (classes, sites); rows sum to one.

`counts` are the numbers of images of each class, float64 (classes,).
"""

import numpy as np
import numpy.typing as npt

from pt_peft.data.splits import shuffled
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Partition
from pt_peft.seeds import derive_seed

Shares = npt.NDArray[np.float64]


def dirichlet(settings: Partition, counts: Shares, sites: list[str], seed: int) -> Shares:
    """Label skew: the shares of each class are drawn from a symmetric Dirichlet distribution with parameter ``alpha``.

    With a small ``alpha`` few sites hold a class, and sites differ in size. Yurochkin et al. 2019, arXiv:1905.12022.
    """
    # The legacy generator's streams are frozen by numpy's policy, those of `default_rng` are not.
    return np.array(
        [
            _drawn(
                np.random.RandomState(derive_seed(seed, "partition", "dirichlet", label)),
                np.full(len(sites), settings.alpha),
            )
            for label in range(len(counts))
        ]
    )


def dirichlet_by_site(settings: Partition, counts: Shares, sites: list[str], seed: int) -> Shares:
    """Label skew of sites of one size: each draws its mix of classes from a Dirichlet distribution.

    Its parameter is ``alpha`` times the classes' shares of all images. Sites take images in a random order; where a
    class has run out, a site takes more of the others of its mix. Hsu et al. 2019, arXiv:1909.06335.
    """
    there = counts > 0
    left, taken = counts.astype(np.float64), np.zeros((len(counts), len(sites)))
    for site in shuffled(sites, seed, "partition", "dirichlet_by_site"):
        random = np.random.RandomState(derive_seed(seed, "partition", "dirichlet_by_site", site))
        mix = np.zeros(len(counts))
        mix[there] = _drawn(random, settings.alpha * counts[there] / counts.sum())
        taken[:, sites.index(site)] = _filled(mix, left, counts.sum() / len(sites))
        left -= taken[:, sites.index(site)]
    shares = np.full(taken.shape, 1 / len(sites))
    shares[there] = taken[there] / taken[there].sum(axis=1, keepdims=True)
    return shares


def _drawn(random: np.random.RandomState, alphas: Shares) -> Shares:
    """A draw from the Dirichlet distribution with the parameters `alphas`, float64 (n,)."""
    # log Gamma(alpha) = log Gamma(alpha + 1) + log(U) / alpha: a small alpha does not underflow to zero everywhere.
    logs = np.log(random.standard_gamma(alphas + 1)) + np.log1p(-random.random_sample(len(alphas))) / alphas
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def _filled(mix: Shares, left: Shares, size: float) -> Shares:
    """`size` images by `mix`, of each class at most what is `left`: float64 (classes,)."""
    taken = np.zeros(len(mix))
    for _ in mix:  # in each pass a class runs out, or nothing is lacking
        open_ = left > taken
        weights = np.where(open_, mix, 0)
        if not weights.any():
            weights = np.where(open_, left - taken, 0)
        if not weights.any():
            break
        taken = np.minimum(left, taken + (size - taken.sum()) * weights / weights.sum())
    return taken


def shards(settings: Partition, counts: Shares, sites: list[str], seed: int) -> Shares:
    """Every site has ``classes_per_site`` classes; the sites that have a class share its images equally.

    After the pathological split of McMahan et al. 2017, arXiv:1602.05629.

    Raises:
        UserError: if a class would have no site, or a site more classes than there are.
    """
    classes, k = len(counts), settings.classes_per_site
    if k > classes or k * len(sites) < classes:
        raise UserError(
            f"partition.classes_per_site is {k}, but {len(sites)} site(s) and {classes} classes need a number from "
            f"{-(-classes // len(sites))} to {classes}: every class must have a site."
        )
    labels = sorted(range(classes), key=lambda label: derive_seed(seed, "partition", "shards", label))
    has = np.zeros((classes, len(sites)))
    for place, site in enumerate(shuffled(sites, seed, "partition", "shards", "sites")):
        for offset in range(k):
            has[labels[(place * k + offset) % classes], sites.index(site)] = 1
    return has / has.sum(axis=1, keepdims=True)


def quantity(settings: Partition, counts: Shares, sites: list[str], seed: int) -> Shares:
    """Quantity skew: the site of rank i = 1, 2, … has a share proportional to i ** -exponent of every class."""
    shares = np.arange(1, len(sites) + 1) ** -settings.exponent
    order = shuffled(sites, seed, "partition", "quantity")
    of_site = np.array([shares[order.index(site)] for site in sites])
    return np.tile(of_site / of_site.sum(), (len(counts), 1))


PROPORTIONS = {"dirichlet": dirichlet, "dirichlet_by_site": dirichlet_by_site, "shards": shards, "quantity": quantity}
