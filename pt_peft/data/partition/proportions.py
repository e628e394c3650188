"""The share of each class that each site should have: float64 (classes, sites); rows sum to one."""

import numpy as np
import numpy.typing as npt

from pt_peft.data.splits import shuffled
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Partition
from pt_peft.seeds import derive_seed

Shares = npt.NDArray[np.float64]


def dirichlet(settings: Partition, classes: int, sites: list[str], seed: int) -> Shares:
    """Label skew: the shares of each class are drawn from a symmetric Dirichlet distribution with parameter ``alpha``.

    With a small ``alpha`` few sites hold a class. Yurochkin et al. 2019, arXiv:1905.12022; Hsu et al. 2019,
    arXiv:1909.06335.
    """
    rows: list[Shares] = []
    for label in range(classes):
        # The legacy generator's streams are frozen by numpy's policy, those of `default_rng` are not.
        random = np.random.RandomState(derive_seed(seed, "partition", "dirichlet", label))
        # log Gamma(alpha) = log Gamma(alpha + 1) + log(U) / alpha: a small alpha does not underflow to zero everywhere.
        gammas = random.standard_gamma(settings.alpha + 1, len(sites))
        logs = np.log(gammas) + np.log1p(-random.random_sample(len(sites))) / settings.alpha
        weights = np.exp(logs - logs.max())
        rows.append(weights / weights.sum())
    return np.array(rows)


def shards(settings: Partition, classes: int, sites: list[str], seed: int) -> Shares:
    """Every site has ``classes_per_site`` classes; the sites that have a class share its images equally.

    After the pathological split of McMahan et al. 2017, arXiv:1602.05629.

    Raises:
        UserError: if a class would have no site, or a site more classes than there are.
    """
    k = settings.classes_per_site
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


def quantity(settings: Partition, classes: int, sites: list[str], seed: int) -> Shares:
    """Quantity skew: the site of rank i = 1, 2, … has a share proportional to i ** -exponent of every class."""
    shares = np.arange(1, len(sites) + 1) ** -settings.exponent
    order = shuffled(sites, seed, "partition", "quantity")
    of_site = np.array([shares[order.index(site)] for site in sites])
    return np.tile(of_site / of_site.sum(), (classes, 1))


PROPORTIONS = {"dirichlet": dirichlet, "shards": shards, "quantity": quantity}
