"""How results become one: against closed forms, in any order, with liars among the sites."""

import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from pt_peft.errors import UserError
from pt_peft.exchange.aggregation import Aggregation
from pt_peft.exchange.aggregation.base import SiteResult, squared_distances
from pt_peft.exchange.aggregation.class_weighted_mean import ClassWeightedMean
from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.experiment.experiment import Experiment
from pt_peft.schema import parse

KINDS = [
    {"name": "mean"},
    {"name": "mean", "weighting": "uniform"},
    {"name": "mean", "weighting": "inverse_variance"},
    {"name": "median"},
    {"name": "trimmed_mean", "f": 1},
    {"name": "norm_bounded_mean"},
    {"name": "norm_bounded_mean", "bound": 0.5},
    {"name": "multi_krum", "f": 1},
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "_".join(map(str, kind.values())))


def aggregate(kind, results, before=None):
    aggregation = TypeAdapter(Aggregation).validate_python(kind)
    aggregator = aggregation.start(before or {key: np.zeros_like(value) for key, value in results[0].tensors.items()})
    for result in results:
        aggregator.add(result)
    return aggregator.result()


def sites(values, weights=None):
    return [
        SiteResult(f"site-{index}", {"x": value}, (weights or [1] * len(values))[index])
        for index, value in enumerate(values)
    ]


def drawn(seed, count):
    """Values over many magnitudes, and numbers of images."""
    random = np.random.default_rng(seed)
    values = [(random.normal(size=(2, 3)) * 10.0 ** random.integers(-3, 3)).astype(np.float32) for _ in range(count)]
    return values, random.integers(1, 10_000, count).tolist()


@every_kind
def test_the_order_of_arrival_does_not_matter(kind):
    for seed in range(20):
        results = sites(*drawn(seed, 5 + seed % 3))
        shuffled = np.random.default_rng(seed).permutation(len(results))
        one, other = aggregate(kind, results)["x"], aggregate(kind, [results[index] for index in shuffled])["x"]
        assert one.dtype == other.dtype == np.float32
        if kind["name"] == "mean":
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-12)
        else:
            np.testing.assert_array_equal(one, other)


@every_kind
def test_equal_results_are_a_fixed_point(kind):
    for seed in range(20):
        (value,), _ = drawn(seed, 1)
        count = 5 + seed % 5
        before = {"x": value if kind.get("bound") else np.zeros_like(value)}
        result = aggregate(kind, sites([value] * count, list(range(1, count + 1))), before)["x"]
        np.testing.assert_array_equal(result, value)


@pytest.mark.parametrize("first", [0, 1])
def test_a_row_of_the_classifier_is_averaged_by_the_images_of_its_class(first):
    counts = {"a": np.array([6.0, 1, 0, 0]), "b": np.array([2.0, 3, 2, 0]), "absent": np.array([9.0, 9, 9, 9])}
    values = {"a": 1.0, "b": 5.0}
    before = {"head.weight": np.full((4, 2), 7, np.float32), "head.bias": np.full(4, 7, np.float32)}
    before |= {"x": np.zeros(4, np.float32)}
    mean = ClassWeightedMean(before, counts, np.array([1.0, 2, 1, 1]), {"head.weight", "head.bias"})
    for name in ("ab", "ba")[first]:
        mean.add(SiteResult(name, {key: np.full_like(value, values[name]) for key, value in before.items()}, 7))
    rows = [(6 * 1 + 2 * 5) / 8, (1 * 1 + 3 * 5) / 4, 5, 7]  # the last one as it was
    result = mean.result()
    np.testing.assert_array_equal(result["head.bias"], np.array(rows, np.float32))
    np.testing.assert_array_equal(result["head.weight"], np.array(rows, np.float32)[:, None].repeat(2, axis=1))
    assert mean.shares == pytest.approx({"a": 8 / 18, "b": 10 / 18})
    np.testing.assert_allclose(result["x"], (8 * 1 + 10 * 5) / 18)


def test_means():
    values, weights = drawn(0, 6)
    exact = np.array(values, np.float64)
    by_samples = aggregate({"name": "mean"}, sites(values, weights))["x"]
    np.testing.assert_allclose(by_samples, np.average(exact, axis=0, weights=weights), rtol=1e-6, atol=1e-6)
    uniform = aggregate({"name": "mean", "weighting": "uniform"}, sites(values, weights))["x"]
    np.testing.assert_allclose(uniform, exact.mean(axis=0), rtol=1e-6, atol=1e-6)


def test_inverse_variance():
    """Deviations from the mean 2 are -2, -1 and 3, whose squares weigh 1/4, 1/1 and 1/9."""
    values = [np.full(4, value, np.float32) for value in (0, 1, 5)]
    result = aggregate({"name": "mean", "weighting": "inverse_variance"}, sites(values))["x"]
    np.testing.assert_allclose(result, (1 / 1 * 1 + 5 / 9) / (1 / 4 + 1 + 1 / 9), rtol=1e-6)


def test_trimmed_mean_and_median():
    values = [np.array([value, -value], np.float32) for value in (1, 2, 3, 4, 1000)]
    np.testing.assert_allclose(aggregate({"name": "trimmed_mean", "f": 1}, sites(values))["x"], [3, -3])
    np.testing.assert_allclose(aggregate({"name": "trimmed_mean", "f": 2}, sites(values))["x"], [3, -3])
    np.testing.assert_allclose(aggregate({"name": "median"}, sites(values[:4]))["x"], [2.5, -2.5])


def test_norms_are_bounded_over_all_tensors():
    """Changes of norm 5 and 10 from a start that is not zero; the bound is 5, the first site's own norm."""
    before = {"x": np.array([1.0, 1.0], np.float32), "y": np.array([1.0], np.float32)}
    results = [
        SiteResult("a", {"x": np.array([4.0, 1.0], np.float32), "y": np.array([5.0], np.float32)}, 1),
        SiteResult("b", {"x": np.array([1.0, 7.0], np.float32), "y": np.array([9.0], np.float32)}, 99),
    ]
    result = aggregate({"name": "norm_bounded_mean", "bound": 5}, results, before)
    np.testing.assert_allclose(result["x"], [1 + 1.5, 1 + 1.5])
    np.testing.assert_allclose(result["y"], [1 + 4])


def test_multi_krum_leaves_out_the_farthest():
    values = [np.full(3, value, np.float32) for value in (0.0, 0.1, 0.2, 0.3, 9.0)]
    np.testing.assert_allclose(aggregate({"name": "multi_krum", "f": 1}, sites(values))["x"], 0.15, rtol=1e-6)
    distances = squared_distances(sites(values))
    assert distances[0, 4] == pytest.approx(3 * 81)
    assert (np.diag(distances) == 0).all()
    assert (distances == distances.T).all()


ATTACKS = {
    "sign flip": lambda honest, random: -10 * honest,
    "scaled": lambda honest, random: 1000 * honest,
    "noise": lambda honest, random: random.normal(0, 100, honest.shape),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", [one for one in KINDS if one["name"] not in ("mean",)], ids=lambda kind: str(kind))
def test_one_liar_of_five(kind, attack):
    """Honest updates are a common direction with noise; the aggregate is close to their mean, which the mean is not."""
    random = np.random.default_rng(0)
    truth = random.normal(0, 0.02, 400)
    honest = [truth + random.normal(0, 0.005, 400) for _ in range(4)]
    lie = ATTACKS[attack](honest[0], random)
    results = sites([value.astype(np.float32) for value in [*honest, lie]])
    far = np.linalg.norm(aggregate({"name": "mean"}, results)["x"] - truth)
    near = np.linalg.norm(aggregate(kind, results)["x"] - truth)
    assert far > 2 * np.linalg.norm(truth)
    # A bounded lie still pulls, by a fifth of an honest norm and of what it takes away.
    assert near < (0.5 if kind["name"] == "norm_bounded_mean" else 0.25) * np.linalg.norm(truth)


@every_kind
def test_of_nothing(kind):
    aggregator = TypeAdapter(Aggregation).validate_python(kind).start({})
    with pytest.raises(ValueError, match="no results"):
        aggregator.result()


def override_fields(experiment, **sections) -> dict:
    """Its content with sections replaced, or parts of them."""
    content = experiment.model_dump(mode="json")
    return {
        **content,
        **{
            name: {**section} if "name" in section else {**content[name], **section}
            for name, section in sections.items()
        },
    }


def test_the_quorum_fits(tiny, tmp_path):
    with pytest.raises(
        ValueError, match=r"'federation.min_sites' must be at least 5 with .* 'multi_krum': .*; it is 2"
    ):
        Experiment.model_validate({**tiny.model_dump(), "aggregation": {"name": "multi_krum"}})
    enough = {**tiny.federation.model_dump(), "min_sites": 5}
    Experiment.model_validate({**tiny.model_dump(), "federation": enough, "aggregation": {"name": "multi_krum"}})
    for section in ({"name": "median"}, {"name": "norm_bounded_mean"}):
        with pytest.raises(ValueError, match=r"must be at least 3 with"):
            Experiment.model_validate({**tiny.model_dump(), "aggregation": section})
    Experiment.model_validate({**tiny.model_dump(), "aggregation": {"name": "norm_bounded_mean", "bound": 1.0}})


@pytest.mark.parametrize(
    "kind", [{"name": "median"}, {"name": "trimmed_mean"}, {"name": "norm_bounded_mean"}, {"name": "multi_krum"}]
)
def test_no_way_around_a_robust_rule(tiny, kind):
    enough = {"min_sites": 5}
    with pytest.raises(
        UserError, match=r"^--set: field 'training.control_variates' must be false with aggregation.name"
    ):
        parse(
            Experiment,
            override_fields(tiny, aggregation=kind, training={"control_variates": True}, federation=enough),
            "--set",
        )
    with pytest.raises(UserError, match=f"lora_ranks' must be empty with aggregation.name '{kind['name']}'"):
        parse(
            Experiment,
            override_fields(tiny, aggregation=kind, federation={**enough, "lora_ranks": {"site-1": 1}}),
            "--set",
        )


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (
            {"aggregation": {"name": "mean", "weighting": "inverse_variance"}},
            "aggregation.weighting 'inverse_variance'",
        ),
        ({"server_optimizer": {"name": "fedadam"}}, "server_optimizer.name 'fedadam'"),
    ],
)
def test_missing_components_are_no_opinion(tiny, fields, what):
    with pytest.raises(UserError, match=f"lora_ranks' must be empty with {what}"):
        parse(Experiment, override_fields(tiny, **fields, federation={"lora_ranks": {"site-1": 1}}), "--set")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "trimmed_mean", "f": 0}, "'aggregation.f' is 0: input should be greater than or equal to 1"),
        ({"name": "trimmed_mean", "k": 1}, "'aggregation.k' is unknown"),
        ({"name": "nope"}, "'aggregation' is .*'mean', 'median', 'trimmed_mean'"),
        ({}, "'aggregation' is"),
    ],
)
def test_errors_name_the_field_of_the_file(tiny, tmp_path, section, message):
    path = tmp_path / "experiment.json"
    fields = {**tiny.model_dump(mode="json"), "aggregation": section}
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        Experiment.read(path)


def test_the_default_is_fedavg(tiny):
    assert tiny.aggregation == Mean()
    assert tiny.server_optimizer.name == "none"
    assert tiny.training.proximal == 0
