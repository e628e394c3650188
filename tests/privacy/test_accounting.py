"""Epsilon against the accountants of Opacus and of Google, which are independent of ours and of each other."""

import sys
import warnings

import pytest

from pt_peft.errors import UserError
from pt_peft.privacy.accounting import Steps, epsilon

DELTA = 1e-5
CASES = [(0.05, 1.1, 300), (0.01, 0.5, 10), (0.4, 2.0, 30), (0.001, 0.3, 1000), (0.2, 10.0, 5)]


def steps(rate: float, noise: float, count: int) -> Steps:
    return Steps(rate=rate, noise_multiplier=noise, count=count)


@pytest.mark.parametrize("case", CASES)
def test_rdp_is_that_of_opacus(case):
    accountants = pytest.importorskip("opacus.accountants")
    theirs, orders = accountants.RDPAccountant(), accountants.RDPAccountant.DEFAULT_ALPHAS
    rate, noise, count = case
    theirs.history = [(noise, rate, count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the best order is the greatest or the smallest that it tries
        wanted = theirs.get_epsilon(DELTA)
    assert epsilon([steps(*case)], DELTA, orders=orders) == pytest.approx(wanted, rel=1e-8)
    assert epsilon([steps(*case)], DELTA) <= wanted * (1 + 1e-8)


@pytest.mark.parametrize("case", CASES[:3])
def test_prv_is_that_of_opacus_and_tighter(case):
    accountants = pytest.importorskip("opacus.accountants")
    theirs = accountants.PRVAccountant()
    theirs.history = [(case[1], case[0], case[2])]
    # In two parts, as a budget has them.
    ours = epsilon([steps(case[0], case[1], 3), steps(case[0], case[1], case[2] - 3)], DELTA, "prv")
    assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-9)
    assert ours < epsilon([steps(*case)], DELTA)


@pytest.mark.parametrize("case", CASES[:2])
def test_against_googles_accountants(case):
    """Rényi's but for what other orders make; loss distributions give the truth, which ours bounds from above."""
    accounting = pytest.importorskip("dp_accounting")
    pld, rdp = accounting.pld, accounting.rdp

    rate, noise, count = case
    event = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
    theirs, truth = rdp.RdpAccountant(), pld.PLDAccountant()
    theirs.compose(event, count)
    truth.compose(event, count)
    ours = epsilon([steps(*case)], DELTA)
    assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=0.01)
    assert truth.get_epsilon(DELTA) <= ours
    pytest.importorskip("opacus.accountants")
    assert epsilon([steps(*case)], DELTA, "prv") == pytest.approx(truth.get_epsilon(DELTA), abs=0.02)


@pytest.mark.parametrize(("noise", "count"), [(1.1, 30), (10.0, 3), (0.5, 2), (100.0, 1), (1.0, 0)])
def test_without_sampling_it_is_exact(noise, count):
    accounting = pytest.importorskip("dp_accounting")
    pld = accounting.pld

    ours = epsilon([steps(1.0, noise, count)], DELTA)
    if not count:
        assert ours == 0.0
        return
    truth = pld.PLDAccountant()
    truth.compose(accounting.GaussianDpEvent(noise), count)
    assert ours == pytest.approx(truth.get_epsilon(DELTA), rel=1e-5)


def test_different_steps_add_up():
    """Those of several jobs: at least the greatest of them alone, at most their sum."""
    one, other = steps(0.05, 1.1, 100), steps(0.2, 3.0, 40)
    together = epsilon([one, other], DELTA)
    alone = [epsilon([step], DELTA) for step in (one, other)]
    assert max(alone) < together < sum(alone)
    mixed = epsilon([one, steps(1.0, 5.0, 2)], DELTA)
    assert mixed > alone[0]


def test_great_epsilons_do_not_overflow():
    assert epsilon([steps(1.0, 0.1, 1000)], DELTA) == pytest.approx(50_000 + 316 * 4.27, rel=0.01)
    assert epsilon([steps(1.0, 1000.0, 1)], 1e-3) == 0.0


def test_prv_without_opacus_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(UserError, match=r"needs Opacus at the sites .* pip install opacus, or 'rdp'"):
        epsilon([steps(*CASES[0])], DELTA, "prv")
