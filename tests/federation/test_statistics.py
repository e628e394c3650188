"""Rounds of statistics: their stages, both ends, and the plain loop that goes through them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmark.oracle.baselines import pooled
from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from helpers import changed
from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.environment import own_code
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.exchange.tensors import TensorError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.statistics import (
    FEDERATION_COUNTS,
    LOSSES,
    Stage,
    down_specs,
    stage_bytes,
    stage_of,
    stages,
    up_specs,
)
from pt_peft.federation.head_statistics import HeadStatistics, check_sums, checked_losses
from pt_peft.federation.reports import ChoiceReport, StatisticsReport
from pt_peft.federation.site_statistics import answer
from pt_peft.schema import parse
from pt_peft.statistics.closed_form import candidates
from pt_peft.statistics.moments import COUNTS, SECOND, SUMS, class_counts, class_weights, moments
from pt_peft.statistics.temperature import TEMPERATURES

NAMES = ["site-1", "site-2", "site-3"]
PROBE = {"method": {"name": "linear_probe", "options": {}}, "federation": {"rounds": 0}}
MOMENTS = Stage("start", "moments", 0)
CHOICE = Stage("start", "choice", 0)


@pytest.fixture(scope="module")
def probe(tiny):
    return changed(tiny, **PROBE, head={"start": "ridge"})


@pytest.fixture(scope="module")
def trainer(probe, site):
    return make_trainer(probe, site)


@pytest.fixture(scope="module")
def data(probe, site):
    return load_sites(probe, site, NAMES)


def trained(experiment, site, data, **options):
    return federate(make_trainer(experiment, site), data, **options).tensors


def chosen(split: ImageSplit, places) -> ImageSplit:
    return ImageSplit(np.asarray(split.images)[places], np.asarray(split.labels)[places])


def dealt(data: dict[str, SiteData], shares: int, skew: float | None) -> dict[str, SiteData]:
    """The same images dealt to so many sites: by a Dirichlet draw for each class, or equally."""
    random, whole = np.random.default_rng(3), pooled(data)
    splits = []
    for split in (whole.train, whole.val, whole.test):
        labels = np.asarray(split.labels)
        owner = np.zeros(len(labels), int)
        for label in np.unique(labels):
            places = random.permutation(np.flatnonzero(labels == label))
            share = random.dirichlet([skew or 1e6] * shares)
            cuts = (np.cumsum(share)[:-1] * len(places)).astype(int)
            for number, part in enumerate(np.split(places, cuts)):
                owner[part] = number
        splits.append([chosen(split, np.flatnonzero(owner == number)) for number in range(shares)])
    return {f"part-{number}": SiteData(*(split[number] for split in splits)) for number in range(shares)}


@pytest.mark.parametrize(
    ("head", "rounds", "expected"),
    [
        ({}, 2, []),
        ({"start": "zeros"}, 2, []),
        ({"start": "ridge"}, 0, ["counts 0", "moments 0", "choice 0"]),
        ({"start": "lda"}, 2, ["moments 0", "choice 0"]),
        ({"finish": "ridge", "penalties": [0.1]}, 2, ["counts 2", "moments 2", "choice 2"]),
        ({"finish": "lda", "penalties": [0.1], "temperature": False}, 2, ["moments 2"]),
        (
            {"start": "lda", "finish": "ridge", "temperature": False},
            1,
            ["moments 0", "choice 0", "counts 1", "moments 1", "choice 1"],
        ),
    ],
)
def test_the_stages_of_an_experiment(tiny, head, rounds, expected):
    experiment = changed(tiny, head=head, federation={"rounds": rounds})
    assert [f"{stage.name} {stage.round_number}" for stage in stages(experiment)] == expected
    assert stage_of(experiment, "moments", 7) is None


def test_the_bytes_of_the_stages(probe, trainer):
    """Four classes, 32 features, five penalties, 49 temperatures; a probe of 132 float32 values goes down."""
    found = [stage_bytes(probe, trainer.exchange, stage) for stage in stages(probe)]
    sums = 8 * (4 + 4 * 32 + 32 * 33 // 2)
    assert [one.up for one in found] == [8 * 4, sums, 8 * 5 * 49]
    assert [one.down for one in found] == [0, 4 * 132 + 8 * 4, 4 * 132 + 8 * 4 + sums]


def assert_same_head(found, expected):
    """To 1e-6 but for the temperature, which follows from losses that each site rounds."""
    size, wanted = (np.linalg.norm(one["head.weight"].astype(np.float64)) for one in (found, expected))
    assert size == pytest.approx(wanted, rel=0.02)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key] / size, value / wanted, rtol=1e-6, atol=1e-6)


def test_without_a_round_the_head_is_that_of_all_images_in_one_place(probe, trainer, data):
    expected = federate(trainer, {"all": pooled(data)}).tensors
    assert expected.keys() == {"head.weight", "head.bias"}
    assert_same_head(federate(trainer, data).tensors, expected)
    labels = np.concatenate([one.train.labels for one in data.values()])
    features = np.concatenate([trainer.features({}, one.train, "none") for one in data.values()])
    weights = class_weights(class_counts(labels, 4))
    sums = moments(features, labels, 4, weights)
    heads = candidates("ridge", sums, weights, probe.head.penalties)
    # Up to the temperature the head is one of the candidates.
    found = expected["head.weight"].astype(np.float64)
    cosines = [(found * one.weight).sum() / np.linalg.norm(found) / np.linalg.norm(one.weight) for one in heads]
    assert max(cosines) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", ["ridge", "lda"])
@pytest.mark.parametrize("choose_by", ["validation", "leave_one_out"])
def test_the_head_is_the_same_for_any_partition_of_the_images(probe, site, data, kind, choose_by):
    experiment = changed(probe, head={"start": kind, "choose_by": choose_by})
    found = [trained(experiment, site, dealt(data, shares, skew)) for shares, skew in ((2, None), (4, None), (3, 0.5))]
    assert_same_head(found[1], found[0])
    assert_same_head(found[2], found[0])


def test_a_site_that_leaves_between_the_stages_is_in_the_sums_that_it_sent(probe, trainer, data):
    """The weights are those of all counts that came, the sums those of the sites that answered."""
    here = federate(trainer, data, absent=[("site-3", CHOICE)]).tensors
    gone = federate(trainer, data, absent=[("site-3", MOMENTS), ("site-3", CHOICE)]).tensors
    two = federate(trainer, {name: data[name] for name in NAMES[:2]}).tensors
    assert not np.allclose(here["head.weight"], gone["head.weight"])
    assert gone["head.weight"].shape == two["head.weight"].shape


def test_only_sites_in_the_sums_are_asked_to_leave_their_images_out(probe, trainer, data):
    gathered = HeadStatistics(changed(probe, head={"choose_by": "leave_one_out"}), trainer.exchange, "start")
    counts = answer(trainer, Stage("start", "counts", 0), data["site-1"], {}, {})
    gathered.take(Stage("start", "counts", 0), {"site-1": counts.tensors}, {})
    sums = answer(trainer, MOMENTS, data["site-1"], {}, gathered.down(MOMENTS))
    gathered.take(MOMENTS, {"site-1": sums.tensors}, {})
    assert gathered.asked(CHOICE, NAMES) == ["site-1"]
    assert gathered.asked(MOMENTS, NAMES) == NAMES


def test_a_round_after_the_start_and_before_the_finish(tiny, site, data):
    """Sites train from the closed form, and the classifier is solved anew on the features they have made."""
    experiment = changed(tiny, head={"start": "ridge", "finish": "ridge"})
    start = trained(changed(experiment, head={"finish": "trained"}), site, data)
    both = trained(experiment, site, data)
    assert start.keys() == both.keys()
    same = [key for key in both if np.array_equal(both[key], start[key])]
    assert sorted(same) == sorted(both.keys() - {"head.weight", "head.bias"})


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"name": "sba", "options": {}}},
        {"payload": {"up": {"name": "int8"}, "down": {"name": "float16"}}},
        {"training": {"control_variates": True}},
        {"data": {"test_time_flips": "all"}},
        {"data": {"task": "ordinal"}, "select_by": "quadratic_kappa"},
        {"select_by": "auroc"},
        {"server_optimizer": {"name": "fedadam"}},
    ],
)
def test_with_whatever_else_an_experiment_has(tiny, site, data, fields):
    experiment = changed(tiny, head={"start": "ridge", "finish": "lda"}, federation={"rounds": 1}, **fields)
    found = trained(experiment, site, data)
    assert all(np.isfinite(value).all() for value in found.values())


def test_zeros(tiny, site, data):
    trainer = make_trainer(changed(tiny, head={"start": "zeros"}), site)
    seen = {}

    class Watch:
        def starts(self, round_number, site, tensors):
            seen.setdefault((round_number, site), tensors)

        def trained(self, round_number, site, result):
            pass

    federate(trainer, {"site-1": data["site-1"]}, observer=Watch())
    assert not seen[0, "site-1"]["head.weight"].any()
    assert seen[1, "site-1"]["head.weight"].any()
    assert seen[0, "site-1"]["blocks.0.attn.qkv.lora_A"].any()


def test_the_temperature_makes_probabilities_say_how_often_they_are_right(probe, site, data):
    """The loss on the images that it was chosen by is lower, and no prediction changes."""
    plain = changed(probe, head={"temperature": False})
    with_it, without = trained(probe, site, data), trained(plain, site, data)
    ratio = with_it["head.weight"] / without["head.weight"]
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-4)
    trainer, whole = make_trainer(probe, site), pooled(data).val
    found = [trainer.evaluate(tensors, whole) for tensors in (with_it, without)]
    assert found[0]["loss"] < found[1]["loss"]
    assert found[0]["confusion"] == found[1]["confusion"]


def test_features_are_what_enters_the_classifier(tiny, site, data):
    trainer = make_trainer(tiny, site)
    split = data["site-1"].val
    features = trainer.features({}, split, "none")
    assert features.shape == (16, 32)
    assert features.dtype == np.float32
    head = trainer.model.module.get_classifier()
    logits = torch.from_numpy(features) @ head.weight.detach().T + head.bias.detach()
    assert torch.allclose(trainer.predict({}, split)[0], logits, atol=1e-6)
    assert not head._forward_pre_hooks


def test_a_class_of_few_images_is_left_out_of_everything(probe, trainer, data):
    labels = np.asarray(data["site-1"].train.labels)
    few = np.concatenate([np.flatnonzero(labels == 2)[:4], np.flatnonzero(labels != 2)])
    small = replace(data["site-1"], train=chosen(data["site-1"].train, few))
    counts = answer(trainer, Stage("start", "counts", 0), small, {}, {}, least=5)
    assert counts.tensors[COUNTS][2] == 0
    assert counts.report == {"num_samples": len(few) - 4, "classes_left_out": 1}
    found = answer(trainer, MOMENTS, small, {}, {FEDERATION_COUNTS: counts.tensors[COUNTS]}, least=5)
    without = chosen(small.train, np.arange(4, len(few)))
    weights = class_weights(counts.tensors[COUNTS])
    expected = moments(trainer.features({}, without, "none"), without.labels, 4, weights)
    assert found.tensors[COUNTS][2] == 0
    assert not found.tensors[SUMS][2].any()
    assert np.allclose(found.tensors[SECOND], expected.second, atol=1e-6)
    assert answer(trainer, Stage("start", "counts", 0), small, {}, {}, least=4).report["classes_left_out"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: -1}, "fewer images of a class than this site alone"),
        ({0: 0.5}, "not of whole numbers of 0 or more"),
        ({0: 1e308, 1: 1e308}, "not of whole numbers of 0 or more"),
        ({0: float("nan")}, "not finite"),
    ],
)
def test_a_site_refuses_counts_that_cannot_be_its_federations(trainer, data, change, message):
    """Else a lead could let a class weigh as if it had one image."""
    counts = answer(trainer, Stage("start", "counts", 0), data["site-1"], {}, {}).tensors[COUNTS].copy()
    for place, by in change.items():
        counts[place] += by
    with pytest.raises(TensorError, match=message):
        answer(trainer, MOMENTS, data["site-1"], {}, {FEDERATION_COUNTS: counts})


def test_a_site_refuses_statistics_that_no_stage_has(trainer, data):
    with pytest.raises(TensorError, match="1 tensor"):
        answer(trainer, Stage("start", "counts", 0), data["site-1"], {}, {COUNTS: np.ones(4)})


@pytest.fixture(scope="module")
def sums(trainer, data):
    counts = answer(trainer, Stage("start", "counts", 0), data["site-1"], {}, {}).tensors[COUNTS]
    return answer(trainer, MOMENTS, data["site-1"], {}, {FEDERATION_COUNTS: counts}).tensors


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (COUNTS, -1.0, "not of whole numbers"),
        (COUNTS, 9.5, "not of whole numbers"),
        (COUNTS, 11.0, "counts 41 images, the report 40"),
        (SUMS, 1.1e7, "larger values than sums over its images can have"),
        (SECOND, 1e14, "larger values than sums over its images can have"),
        (SECOND, float("inf"), "not finite"),
        (SUMS, float("nan"), "not finite"),
    ],
)
def test_sums_that_cannot_be_true_are_refused(probe, trainer, sums, key, value, message):
    gathered = HeadStatistics(probe, trainer.exchange, "start")
    report = parse(StatisticsReport, said(num_samples=40, classes_left_out=0), "report")
    changed_sums = {name: array.copy() for name, array in sums.items()}
    assert gathered.check(MOMENTS, changed_sums, report).keys() == sums.keys()
    changed_sums[key].flat[0] = value
    with pytest.raises(TensorError, match=message):
        gathered.check(MOMENTS, changed_sums, report)


def test_the_filter_looks_for_small_classes(sums):
    check_sums(sums, 40, least=10)
    with pytest.raises(TensorError, match=r"has a class of 10 image\(s\), not of 11 or more"):
        check_sums(sums, 40, least=11)


def said(**fields):
    return {"seconds": 1.26, "code": own_code().model_dump(), **fields}


def test_reports_of_statistics(probe):
    report = parse(StatisticsReport, said(num_samples=40, classes_left_out=1), "report").checked(probe)
    assert report.seconds == 1.3
    for fields, message in (
        ({"num_samples": 41, "classes_left_out": 0}, "'num_samples' is 41; at most 40"),
        ({"num_samples": 40, "classes_left_out": 4}, "classes_left_out is 4, and the job has 4 classes"),
    ):
        with pytest.raises(UserError, match=message):
            parse(StatisticsReport, said(**fields), "report").checked(probe)
    with pytest.raises(UserError, match="'num_samples' is 0"):
        parse(StatisticsReport, said(num_samples=0, classes_left_out=0), "report")


def before_the_choice(probe, trainer, data) -> HeadStatistics:
    """The server's part once site-1 has sent its counts and moments."""
    sent = HeadStatistics(probe, trainer.exchange, "start")
    counts = answer(trainer, Stage("start", "counts", 0), data["site-1"], {}, {}).tensors
    sent.take(Stage("start", "counts", 0), {"site-1": counts}, {})
    sent.take(MOMENTS, {"site-1": answer(trainer, MOMENTS, data["site-1"], {}, sent.down(MOMENTS)).tensors}, {})
    return sent


def test_reports_of_candidates(probe, trainer, data):
    sent = before_the_choice(probe, trainer, data)
    found = answer(trainer, CHOICE, data["site-1"], {}, sent.down(CHOICE))
    report = parse(ChoiceReport, said(**found.report), "report").checked(probe)
    assert len(report.splits()) == 5
    assert sent.check(CHOICE, found.tensors, report)[LOSSES].shape == (5, len(TEMPERATURES))
    for value in (-1.0, 1e9):
        wrong = {LOSSES: found.tensors[LOSSES].copy()}
        wrong[LOSSES][0, 0] = value
        with pytest.raises(TensorError, match=r"no cross-entropy of 16 image\(s\)"):
            checked_losses(wrong[LOSSES], report)
    several = json.loads(report.model_dump_json())["candidates"]
    with pytest.raises(UserError, match="candidates has 4 entries; 5 would be right"):
        parse(ChoiceReport, said(candidates=several[:4]), "report").checked(probe)
    # A site of too few images has no word in the choice.
    none = answer(trainer, CHOICE, data["site-1"], {}, sent.down(CHOICE), least_evaluated=17)
    assert none.report == {"candidates": None}
    assert not none.tensors[LOSSES].any()
    made = sent.take(CHOICE, {"site-1": none.tensors}, {"site-1": parse(ChoiceReport, said(candidates=None), "report")})
    assert made
    assert (made["penalty"], made["temperature"]) == (0.01, 1.0)  # the middle one


def test_losses_leave_rounded_to_what_they_mean(probe, trainer, data):
    """Exact ones at 49 temperatures would give each image's logits."""
    sent = before_the_choice(probe, trainer, data)
    found = answer(trainer, CHOICE, data["site-1"], {}, sent.down(CHOICE))
    report = parse(ChoiceReport, said(**found.report), "report").checked(probe)
    exact, rounded = found.tensors[LOSSES], checked_losses(found.tensors[LOSSES], report)
    means = rounded / 16
    np.testing.assert_allclose(rounded, exact, atol=16 * 5e-5 + 5e-4 * exact.max())
    assert all(abs(value - float(f"{value:.4g}")) < 1e-12 for value in means.flat)
    assert not np.array_equal(rounded, exact)
    assert np.array_equal(checked_losses(rounded, report), rounded)


@pytest.mark.parametrize("kind", ["ridge", "lda"])
def test_no_count_of_a_small_class_leaves_with_the_images_that_are_left_out_one_by_one(probe, site, data, kind):
    experiment = changed(probe, head={"start": kind, "choose_by": "leave_one_out", "penalties": [1e-12, 0.5]})
    trainer, train = make_trainer(experiment, site), data["site-1"].train
    labels = np.asarray(train.labels)
    few = np.concatenate([np.flatnonzero(labels == 2)[:4], np.flatnonzero(labels != 2)])
    small = replace(data["site-1"], train=chosen(train, few))
    sent = HeadStatistics(experiment, trainer.exchange, "start")
    for stage in stages(experiment)[:-1]:
        sent.take(stage, {"site-1": answer(trainer, stage, small, {}, sent.down(stage), least=5).tensors}, {})
    found = answer(trainer, CHOICE, small, {}, sent.down(CHOICE), least=5)
    report = parse(ChoiceReport, said(**found.report), "report").checked(experiment)
    for one in report.splits():
        assert one.count == len(few) - 4
        assert sum(one.confusion[2]) == 0
    assert sent.check(CHOICE, found.tensors, report)[LOSSES].shape == (2, len(TEMPERATURES))


def test_of_equal_candidates_the_largest_penalty_is_chosen(probe, trainer, data):
    sent = before_the_choice(probe, trainer, data)
    found = answer(trainer, CHOICE, data["site-1"], {}, sent.down(CHOICE))
    (first, *_) = parse(ChoiceReport, said(**found.report), "report").splits()
    alike = parse(ChoiceReport, said(candidates=[first.model_dump()] * 5), "report").checked(probe)
    made = sent.take(CHOICE, {"site-1": found.tensors}, {"site-1": alike})
    assert made
    assert made["penalty"] == 1.0


def test_another_server_goes_on_from_what_the_stages_have_given(probe, trainer, data, sums):
    first, second = (HeadStatistics(probe, trainer.exchange, "start") for _ in range(2))
    first.take(Stage("start", "counts", 0), {"site-1": {COUNTS: sums[COUNTS]}}, {})
    second.take_over(first.state(), [])
    assert np.array_equal(second.down(MOMENTS)[FEDERATION_COUNTS], sums[COUNTS])
    first.take(MOMENTS, {"site-1": sums}, {})
    second.take_over(first.state(), ["site-1"])
    made = second.made
    assert made
    assert made == first.made
    assert greatest_difference(second.head(made), first.head(made)) == 0
    with pytest.raises(TensorError, match="shape"):
        second.take_over({**first.state(), SECOND: np.zeros(3)}, [])


def test_statistics_travel_as_float64_whatever_the_codec(tiny, site):
    """float32 sums would lose the 1e-6."""
    experiment = changed(tiny, head={"start": "ridge"}, payload={"up": {"name": "int8"}, "down": {"name": "int8"}})
    exchange = make_trainer(experiment, site).exchange
    for stage in stages(experiment):
        specs = {**up_specs(experiment, exchange, stage), **down_specs(experiment, exchange, stage)}
        assert {spec.dtype for spec in specs.values()} == {"float64"}


def test_limits_of_statistics(probe, trainer):
    assert Limits().min_images_per_class == 5
    assert [*Limits(bytes_per_round=5280).stage_refusals(probe, trainer.exchange)] == []
    (refusal,) = Limits(bytes_per_round=5279).stage_refusals(probe, trainer.exchange)
    assert "a 5280 bytes" in str(refusal) or "5280 bytes a round" in str(refusal)
    with pytest.raises(OutsideLimits, match=r"sums over 49 training image\(s\); allowed: at least 50"):
        Limits().check_sums(49)
    with pytest.raises(OutsideLimits, match="sums over 0"):
        Limits.open().check_sums(0)
    # Nothing is trained, so that steps do not matter.
    assert [*Limits(min_train_images=1).image_refusals(probe, 1)] == []
