"""Releases of noised sums in whole federations: the plain loop, a worker, its account, what is claimed."""

import json

import numpy as np
import pytest

from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from helpers import changed, opened
from pt_peft.environment import own_code
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.privacy import Privacy, StatisticsPrivacy
from pt_peft.experiment.statistics import Stage, stages, up_specs
from pt_peft.federation.reports import StatisticsReport
from pt_peft.federation.site_statistics import answer
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.privacy.accounting import Steps, epsilon
from pt_peft.privacy.budget import FILE_NAME, Budget
from pt_peft.privacy.claims import claim
from pt_peft.privacy.plan import plan, plan_from, steps_of_a_release
from pt_peft.schema import parse
from pt_peft.statistics.moments import COUNTS, SECOND
from pt_peft.worker.requests import Statistics

NAMES = ["site-1", "site-2"]
STATISTICS = {"noise_multiplier": 2.0, "max_feature_norm": 8.0, "delta": 1e-5}
SAMPLE = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}
PUBLIC = {"randomness": "insecure_from_public_seed"}
MOMENTS = Stage("start", "moments", 0)


@pytest.fixture(scope="module")
def private(tiny):
    """Done after a release, without a round of training."""
    return changed(
        tiny,
        method={"name": "linear_probe", "options": {}},
        head={"start": "lda"},
        federation={"rounds": 0},
        privacy={"statistics": STATISTICS},
    )


@pytest.fixture(scope="module")
def both(private):
    """A release before two rounds of DP-SGD, and one after them."""
    return changed(
        private,
        head={"start": "lda", "finish": "lda"},
        federation={"rounds": 2},
        privacy={"statistics": STATISTICS, "sample": SAMPLE},
    )


@pytest.fixture(scope="module")
def data(private, site):
    return load_sites(private, site, NAMES)


@pytest.mark.parametrize("projection", [None, 5])
def test_the_plain_loop(private, site, data, projection):
    """Equal runs from the public seed alone; the head is one of all features also from a projection of them."""
    # With more noise often no class but one is left beyond it, and two heads of nothing are equal.
    settings = {"statistics": {**STATISTICS, "noise_multiplier": 0.2, "projection": projection}}
    finals = []
    for randomness in (PUBLIC, PUBLIC, {}):
        trainer = make_trainer(changed(private, privacy={**settings, **randomness}), site)
        finals.append(federate(trainer, data).tensors)
    one, again, secret = finals
    assert one["head.weight"].shape == (4, 32)
    assert np.linalg.matrix_rank(one["head.weight"]) <= (projection or 32)
    assert greatest_difference(one, again) == 0
    assert greatest_difference(one, secret) > 1e-3
    assert np.isfinite(secret["head.weight"]).all()


def test_without_clipping_and_with_hardly_any_noise_it_is_the_head_of_all_images(private, site, data):
    plain = changed(private, privacy={"statistics": None})
    expected = federate(make_trainer(plain, site), data).tensors
    hardly = StatisticsPrivacy.model_construct(noise_multiplier=1e-12, max_feature_norm=100.0, delta=1e-5)
    nearly = private.model_copy(update={"privacy": Privacy.model_construct(statistics=hardly)})
    assert greatest_difference(federate(make_trainer(nearly, site), data).tensors, expected) < 1e-4


def test_a_site_sends_its_own_noise_and_leaves_no_class_out(private, site, data):
    """Which classes have few images would be told without noise."""
    trainer = make_trainer(changed(private, privacy=PUBLIC), site)
    first, other = (answer(trainer, MOMENTS, data["site-1"], {}, {}, least=1000, site=name) for name in ("a", "b"))
    assert first.report == {"num_samples": 40, "classes_left_out": 0}
    assert np.abs(first.tensors[COUNTS] - other.tensors[COUNTS]).min() > 1e-6
    hidden = [answer(trainer, MOMENTS, data["site-1"], {}, {}, site="a", secret=True).tensors for _ in range(2)]
    assert np.abs(hidden[0][SECOND] - hidden[1][SECOND]).min() > 0
    projected = changed(private, privacy={"statistics": {**STATISTICS, "projection": 5}})
    assert up_specs(projected, trainer.exchange, MOMENTS)[SECOND].shape == (15,)


def test_what_is_ahead_of_a_site(both):
    start, finish = (stage for stage in stages(both) if stage.name == "moments")

    def steps(rounds, releases):
        of_rounds = Steps(rate=0.4, noise_multiplier=1.0, count=3 * rounds)
        of_releases = Steps(rate=1.0, noise_multiplier=2.0, count=releases)
        return [one for one in (of_rounds, of_releases) if one.count]

    assert plan_from(both, 40, start).steps == steps(2, 2)
    assert plan_from(both, 40, 0).steps == steps(2, 1), "that before the first round is behind it"
    assert plan_from(both, 40, 1).steps == steps(1, 1)
    assert plan_from(both, 40, finish).steps == steps(0, 1)
    assert str(plan(both, 40, 2, 2)) == "2 round(s) and 2 release(s) of statistics"
    assert [str(plan(both, 40, *one)) for one in ((2, 0), (0, 1))] == ["2 round(s)", "1 release(s) of statistics"]
    with pytest.raises(UserError, match=r"'privacy.statistics.delta' is 1e-05, but the site has 200000 training"):
        steps_of_a_release(both, 200_000)


def test_a_worker_pays_for_a_release_as_for_rounds(both, site, tmp_path):
    whole = epsilon(plan_from(both, 40, MOMENTS).steps, 1e-5)
    too_little = site.model_copy(update={"limits": Limits.open().model_copy(update={"max_epsilon": whole * 0.999})})
    enough = site.model_copy(update={"limits": Limits.open().model_copy(update={"max_epsilon": whole * 1.001})})
    session = opened(both, too_little, tmp_path / "job")
    start = initial_exchanged(session.experiment, session._trainer.exchange, session._trainer.initial)
    asked: Statistics = {"round": 0, "since": 0, "stage": "moments"}
    with pytest.raises(OutsideLimits, match=r"2 round\(s\) and 2 release\(s\) of statistics, with which its epsilon"):
        session.statistics(asked, start)
    assert not (tmp_path / FILE_NAME).exists()
    session = opened(both, enough, tmp_path / "job")
    release, a_round = steps_of_a_release(both, 40), plan(both, 40, 1, 0).steps
    assert session.statistics(asked, start)[0]["epsilon"] == epsilon(release, 1e-5)
    assert session.train({"round": 0, "since": 0}, start)[0]["epsilon"] == epsilon([*release, *a_round], 1e-5)
    session.train({"round": 1, "since": 0}, start)
    last: Statistics = {"round": 2, "since": 0, "stage": "moments"}
    assert session.statistics(last, start)[0]["epsilon"] == pytest.approx(whole)
    again = opened(both, enough, tmp_path / "job")
    with pytest.raises(OutsideLimits, match=r"1 release\(s\) of statistics more"):
        again.statistics(last, start)
    assert [one["round"] for one in json.loads((tmp_path / FILE_NAME).read_text())["spent"]] == [0, 0, 1, 2]


def test_a_release_alone_has_the_accountants_epsilon(private, tmp_path):
    """That of the Gaussian mechanism of sensitivity over deviation 1 / 2, by Balle and Wang 2018."""
    now = plan(private, 40, 0, 1)
    spent = Budget(tmp_path, "job", None).charge(private, now, plan_from(private, 40, MOMENTS), 0, None)
    assert spent == epsilon([Steps(rate=1.0, noise_multiplier=2.0, count=1)], 1e-5)
    assert spent == pytest.approx(1.993, abs=2e-3)


def test_a_report_has_an_epsilon_where_noise_counts(private, tiny):
    fields = {"num_samples": 40, "classes_left_out": 0, "seconds": 1.0, "code": own_code().model_dump()}
    for experiment, spent, right in (
        (private, 1.23456, True),
        (private, None, False),
        (changed(private, privacy=PUBLIC), 1.0, False),
        (changed(tiny, head={"start": "lda"}), 1.0, False),
    ):
        report = parse(StatisticsReport, {**fields, "epsilon": spent}, "report")
        if right:
            assert report.checked(experiment).epsilon == 1.235
        else:
            with pytest.raises(UserError, match="report: epsilon is"):
                report.checked(experiment)


def test_an_adapter_claims_what_rounds_and_releases_cost_together(both):
    rounds = [{"sites": {"a": {"epsilon": 2.0}, "b": {"epsilon": 2.5}}}]
    released = [{"sites": {"a": {"epsilon": 3.0}}}, {"sites": {"a": {"candidates": None}}}]
    said = claim(both, rounds, released)
    assert said is not None
    assert said["sample"]["epsilon"] == said["statistics"]["epsilon"] == 3.0
    assert said["statistics"]["noise_multiplier"] == 2.0


def test_limits_take_noise_of_the_sites_own(private):
    Limits(max_epsilon=8).check(changed(private, federation={"rounds": 0}))
    with pytest.raises(OutsideLimits, match="noise that everybody can compute"):
        Limits(max_epsilon=8).check(changed(private, privacy=PUBLIC))
