"""Means for LoRA's factors, against the products formed in full."""

import tracemalloc

import numpy as np
import pytest
from pydantic import TypeAdapter

from pt_peft.exchange.aggregation import Aggregation
from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.aggregation.lora_deviation import LoraDeviation
from pt_peft.exchange.aggregation.lora_factors import squared_norm

RULES = [{"name": "lora_product"}, {"name": "fedex_lora"}, {"name": "lora_fair", "regularization": 0.01}]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["name"])
A, B, R, HEAD = "blocks.0.attn.qkv.lora_A", "blocks.0.attn.qkv.lora_B", "blocks.0.attn.qkv.lora_residual", "head.bias"
D_OUT, D_IN, RANK = 30, 20, 4


def drawn(seed, sites, ranks=None):
    """Results of sites, of which those with a smaller rank have components of zero."""
    random = np.random.default_rng(seed)
    results = []
    for index in range(sites):
        a, b = random.normal(size=(RANK, D_IN)), random.normal(size=(D_OUT, RANK))
        if ranks:
            a[ranks[index] :], b[:, ranks[index] :] = 0, 0
        tensors = {A: a, B: b, HEAD: random.normal(size=5)}
        tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
        results.append(SiteResult(f"site-{index}", tensors, int(random.integers(1, 100))))
    return results


def aggregate(rule, results, before=None):
    before = before or {**results[0].tensors, R: np.zeros((D_OUT, D_IN), np.float32)}
    aggregator = TypeAdapter(Aggregation).validate_python(rule).start(before)
    for result in results:
        aggregator.add(result)
    return aggregator.result()


def mean_product(results):
    weights = np.array([result.num_samples for result in results], float)
    products = [result.tensors[B].astype(float) @ result.tensors[A] for result in results]
    return np.tensordot(weights / weights.sum(), products, axes=1)


def product(tensors):
    return tensors[B].astype(float) @ tensors[A] + tensors.get(R, 0)


@pytest.mark.parametrize("ranks", [None, (1, 2, 4)], ids=["alike", "mixed"])
def test_fedex_is_the_mean_of_the_products(ranks):
    for seed in range(20):
        results = drawn(seed, 3, ranks)
        np.testing.assert_allclose(
            product(aggregate({"name": "fedex_lora"}, results)), mean_product(results), atol=1e-5
        )


def test_fedex_carries_the_residual_on():
    results = drawn(0, 3)
    before = {**results[0].tensors, R: np.random.default_rng(1).normal(size=(D_OUT, D_IN)).astype(np.float32)}
    after = aggregate({"name": "fedex_lora"}, results, before)
    np.testing.assert_allclose(product(after), mean_product(results) + before[R], atol=1e-5)


def test_the_product_is_exact_at_sufficient_rank():
    """Two sites of two components each are four together."""
    for seed in range(20):
        results = drawn(seed, 2, (2, 2))
        np.testing.assert_allclose(
            product(aggregate({"name": "lora_product"}, results)), mean_product(results), atol=1e-5
        )


def test_the_product_is_else_the_best_approximation():
    """Eckart and Young: what is missed is the singular values beyond the rank."""
    for sites in (2, 3, 12):  # 12 sites have more components than the layer has inputs
        results = drawn(sites, sites)
        strengths = np.linalg.svd(mean_product(results), compute_uv=False)
        after = aggregate({"name": "lora_product"}, results)
        missed = np.linalg.norm(product(after) - mean_product(results))
        assert missed == pytest.approx(np.sqrt(np.square(strengths[RANK:]).sum()), rel=1e-5)
        np.testing.assert_allclose(after[A] @ after[A].T, np.eye(RANK), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(after[B], axis=0), strengths[:RANK], rtol=1e-5)


@pytest.mark.parametrize(("d_out", "d_in"), [(30, 6), (6, 30), (6, 6), (30, 20)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_rank_above_the_layers_width_is_padded(d_out, d_in, count):
    """No product has such a rank: all of them is kept, and as many rows of A as fit are orthonormal."""
    rank, random = 8, np.random.default_rng(count)
    results = [
        SiteResult(f"site-{index}", {A: a.astype(np.float32), B: b.astype(np.float32)}, index + 1)
        for index, (a, b) in enumerate(
            (random.normal(size=(rank, d_in)), random.normal(size=(d_out, rank))) for _ in range(count)
        )
    ]
    strengths = np.linalg.svd(mean_product(results), compute_uv=False)
    after = aggregate({"name": "lora_product"}, results, results[0].tensors)
    assert (after[A].shape, after[B].shape) == ((rank, d_in), (d_out, rank))
    missed = np.linalg.norm(product(after) - mean_product(results))
    assert missed == pytest.approx(np.sqrt(np.square(strengths[rank:]).sum()), abs=1e-4)
    fitting = np.diag(np.arange(rank) < d_in).astype(float)
    np.testing.assert_allclose(after[A] @ after[A].T, fitting, atol=1e-5)
    if min(d_out, d_in) < rank:
        assert missed < 1e-4
        assert not after[B][:, min(d_out, d_in) :].any()


@pytest.mark.parametrize("rule", [*RULES, {"name": "mean"}], ids=lambda rule: rule["name"])
def test_every_rule_takes_a_rank_above_the_layers_width(rule):
    random, shapes = np.random.default_rng(0), {A: (8, 6), B: (5, 8)}
    results = [
        SiteResult(name, {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}, images)
        for name, images in (("a", 3), ("b", 1))
    ]
    after = aggregate(rule, results, {**results[0].tensors, R: np.zeros((5, 6), np.float32)})
    assert {key: after[key].shape for key in shapes} == shapes
    assert all(np.isfinite(value).all() for value in after.values())


def test_no_component_of_the_product_dies():
    """Also where B is zero, as it is before the first step, A has something to learn with."""
    results = drawn(0, 3)
    for result in results:
        result.tensors[B][:] = 0
    after = aggregate({"name": "lora_product"}, results)
    assert not after[B].any()
    np.testing.assert_allclose(after[A] @ after[A].T, np.eye(RANK), atol=1e-5)


def test_fair_is_the_least_squares_solution():
    results = drawn(0, 3)
    after = aggregate({"name": "lora_fair", "regularization": 1e-9}, results)
    wanted = np.linalg.lstsq(after[A].T.astype(float), mean_product(results).T, rcond=None)[0].T
    np.testing.assert_allclose(after[B], wanted, atol=1e-4)


def test_fair_goes_from_the_plain_mean_to_nearer_the_product():
    results = drawn(0, 3)
    plain = aggregate({"name": "mean"}, results)
    missed = [
        np.linalg.norm(
            product(aggregate({"name": "lora_fair", "regularization": strength}, results)) - mean_product(results)
        )
        for strength in (1000.0, 10.0, 0.1)
    ]
    assert np.linalg.norm(product(plain) - mean_product(results)) > missed[0] > missed[1] > missed[2]


@every_rule
def test_sites_that_agree_change_nothing(rule):
    one = drawn(0, 1)[0]
    results = [SiteResult(f"site-{index}", one.tensors, index + 1) for index in range(3)]
    after = aggregate(rule, results)
    np.testing.assert_allclose(product(after), product(one.tensors), atol=1e-5)
    np.testing.assert_allclose(after[HEAD], one.tensors[HEAD], rtol=1e-6)


@every_rule
def test_the_order_of_arrival_does_not_matter(rule):
    results = drawn(0, 5)
    one, other = aggregate(rule, results), aggregate(rule, results[::-1])
    assert all(np.array_equal(value, other[key]) and value.dtype == np.float32 for key, value in one.items())


@every_rule
def test_what_is_no_factor_is_averaged(rule):
    results = drawn(0, 3)
    np.testing.assert_allclose(aggregate(rule, results)[HEAD], aggregate({"name": "mean"}, results)[HEAD], rtol=1e-6)


def deviation(results):
    found = LoraDeviation()
    for result in results:
        found.add(result)
    return found.value()


def test_the_deviation():
    results = drawn(0, 4)
    plain = product(aggregate({"name": "mean"}, results))
    wanted = np.linalg.norm(mean_product(results) - plain) / np.linalg.norm(mean_product(results))
    assert deviation(results) == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0.5, "else the test says little"


@pytest.mark.parametrize("inner", [3, 200])
def test_the_norm_of_a_product(inner):
    random = np.random.default_rng(0)
    p, q = random.normal(size=(12, inner)), random.normal(size=(inner, 8))
    assert squared_norm(p, q) == pytest.approx(np.linalg.norm(p @ q) ** 2)


def peak_memory(work) -> int:
    """Bytes that `work` needs at most beside what is there."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_the_deviation_of_many_sites_takes_little_memory():
    """No square of the number of sites, and copies of one layer's factors at a time."""
    random = np.random.default_rng(0)
    assert peak_memory(lambda: squared_norm(np.ones((8, 2000)), np.ones((2000, 8)))) < 1_000_000
    factors = {"A": (RANK, D_IN), "B": (D_OUT, RANK)}
    shapes = {f"blocks.{block}.lora_{factor}": shape for block in range(24) for factor, shape in factors.items()}
    found = LoraDeviation()
    for number in range(16):
        tensors = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
        found.add(SiteResult(f"site-{number}", tensors, 1))
    whole = 16 * sum(8 * int(np.prod(shape)) for shape in shapes.values())
    assert peak_memory(found.value) < whole / 2


def test_no_deviation_where_one_factor_is_the_same_everywhere():
    results = drawn(0, 3)
    for result in results:
        result.tensors[A][:] = results[0].tensors[A]
    assert deviation(results) == pytest.approx(0, abs=1e-7)
    assert deviation([SiteResult("site-1", {HEAD: np.ones(2)}, 1)]) is None
