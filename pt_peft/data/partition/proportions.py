"""How much of each class each site is meant to have: float64 (classes, sites), rows that sum to one."""

import numpy as np

from pt_peft.data.splits import shuffled
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Partition
from pt_peft.seeds import derive_seed


def dirichlet(settings: Partition, classes: int, sites: list[str], seed: int) -> np.ndarray:
    """Label skew: each class's shares are drawn from a symmetric Dirichlet distribution with parameter ``alpha`` (Yurochkin
    et al. 2019, arXiv:1905.12022; Hsu et al. 2019, arXiv:1909.06335). Small alpha: few sites hold a class.
    """
    rows = []
    for label in range(classes):
        # The legacy generator's streams are frozen by numpy's policy, those of `default_rng` are not.
        random = np.random.RandomState(derive_seed(seed, "partition", "dirichlet", label))
        # log Gamma(alpha) = log Gamma(alpha + 1) + log(U) / alpha: no underflow to zero shares everywhere for small alpha.
        gammas = random.standard_gamma(settings.alpha + 1, len(sites))
        logs = np.log(gammas) + np.log1p(-random.random_sample(len(sites))) / settings.alpha
        weights = np.exp(logs - logs.max())
        rows.append(weights / weights.sum())
    return np.array(rows)


def shards(settings: Partition, classes: int, sites: list[str], seed: int) -> np.ndarray:
    """Every site has ``classes_per_site`` classes, a class's images in equal parts for those sites that have it (after the
    pathological split of McMahan et al. 2017, arXiv:1602.05629).

    Raises:
        UserError: if that leaves a class without a site, or asks for more classes than there are.
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


def quantity(settings: Partition, classes: int, sites: list[str], seed: int) -> np.ndarray:
    """Sizes by a power law: the site of rank i = 1, 2, … has a share proportional to i ** -exponent of every class."""
    shares = np.arange(1, len(sites) + 1) ** -settings.exponent
    order = shuffled(sites, seed, "partition", "quantity")
    of_site = np.array([shares[order.index(site)] for site in sites])
    return np.tile(of_site / of_site.sum(), (classes, 1))


PROPORTIONS = {"dirichlet": dirichlet, "shards": shards, "quantity": quantity}
