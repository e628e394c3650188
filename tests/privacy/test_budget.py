"""A site stops itself at its own budget."""

import json

import pytest

from helpers import changed
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.experiment.limits import Limits
from pt_peft.privacy.accounting import Steps, epsilon
from pt_peft.privacy.budget import FILE_NAME, Budget
from pt_peft.privacy.plan import Plan, plan, plan_from, steps_of_a_round

SAMPLE = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}
CLIENT = {"noise_multiplier": 2.0, "max_update_norm": 0.1, "delta": 1e-5, "where": "sites"}
MEAN = {"name": "mean", "weighting": "uniform"}


@pytest.fixture(scope="module")
def private(tiny):
    return changed(tiny, privacy={"sample": SAMPLE}, federation={"rounds": 4})


def train(budget, experiment, number, limit):
    """Pays for a round of a site of 40 images."""
    return budget.charge(experiment, plan(experiment, 40, 1, 0), plan_from(experiment, 40, number), number, limit)


def test_the_steps_of_a_round(private):
    assert steps_of_a_round(private, 40) == [Steps(rate=0.4, noise_multiplier=1.0, count=3)]
    longer = changed(private, training={"local_epochs": 5, "ditto": 0.1})
    assert steps_of_a_round(longer, 40) == [Steps(rate=0.4, noise_multiplier=1.0, count=30)]
    assert steps_of_a_round(private, 10) == [Steps(rate=1.0, noise_multiplier=1.0, count=1)]
    at_sites = changed(private, privacy={"sample": None, "client": CLIENT}, aggregation=MEAN)
    [share] = steps_of_a_round(at_sites, 40)
    assert (share.rate, share.count) == (1.0, 1)
    assert share.noise_multiplier == pytest.approx(2 / 2**0.5)
    assert steps_of_a_round(changed(at_sites, privacy={"client": {**CLIENT, "where": "server"}}), 40) == []
    with pytest.raises(UserError, match=r"'privacy.sample.delta' is 1e-05, but the site has 200000 training images"):
        steps_of_a_round(private, 200_000)


def test_a_plan_beyond_the_limit_is_refused_before_anything_is_written(private, tmp_path):
    a_round = steps_of_a_round(private, 40)
    planned = epsilon(4 * a_round, 1e-5)
    with pytest.raises(
        OutsideLimits, match=r"4 round\(s\), with which its epsilon would be .* of which 0 is spent already"
    ) as error:
        train(Budget(tmp_path, "job", None), private, 0, planned * 0.999)
    assert error.value.reason.sentence().endswith(
        f"its epsilon would be {planned:.6g}, of which 0 is spent already; allowed: {planned * 0.999:.6g}"
    ), "the lead reads this"
    assert not (tmp_path / FILE_NAME).exists()
    assert train(Budget(tmp_path, "job", None), private, 0, planned * 1.001) == epsilon(a_round, 1e-5)


def test_rounds_done_again_cost_again_and_the_last_is_refused(private, tmp_path):
    """A new object each time: the site's process was restarted."""
    a_round = steps_of_a_round(private, 40)
    limit = epsilon(4 * a_round, 1e-5) * 1.001
    spent = [train(Budget(tmp_path, "job", None), private, number, limit) for number in (0, 1, 1, 2)]
    assert spent == [epsilon((index + 1) * a_round, 1e-5) for index in range(4)]
    with pytest.raises(OutsideLimits, match=r"1 round\(s\) more, with which"):
        train(Budget(tmp_path, "job", None), private, 3, limit)
    assert [one["round"] for one in json.loads((tmp_path / FILE_NAME).read_text())["spent"]] == [0, 1, 1, 2]


def test_jobs_add_up_at_the_site_but_not_in_what_a_job_says(private, tmp_path):
    a_round = steps_of_a_round(private, 40)
    limit = epsilon(5 * a_round, 1e-5)
    for number in range(2):
        train(Budget(tmp_path, "first", None), private, number, limit)
    two = changed(private, federation={"rounds": 2})
    assert train(Budget(tmp_path, "second", None), two, 0, limit) == epsilon(a_round, 1e-5)
    with pytest.raises(OutsideLimits):
        train(Budget(tmp_path, "third", None), private, 0, limit)
    # A job that goes on with the first has its rounds behind it, and only the rest before it.
    assert train(Budget(tmp_path, "again", "first"), private, 3, limit) == epsilon(3 * a_round, 1e-5)


def test_a_damaged_account_stops_the_site(private, tmp_path):
    (tmp_path / FILE_NAME).write_text('{"spent": [')
    with pytest.raises(UserError, match="is not valid JSON"):
        train(Budget(tmp_path, "job", None), private, 0, None)


@pytest.mark.parametrize(
    ("field", "value"), [("noise_multiplier", 1e300), ("noise_multiplier", 1e-9), ("rate", 1e-300), ("count", 10**400)]
)
def test_an_account_of_what_cannot_be(private, tmp_path, field, value):
    train(Budget(tmp_path, "job", None), private, 0, None)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    content["spent"][0]["steps"][0][field] = value
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"privacy_spent.json: field 'spent.0.steps.0.{field}' is"):
        train(Budget(tmp_path, "job", None), private, 1, 8.0)


def test_what_the_accountant_cannot_tell_is_not_paid(private, tmp_path):
    pytest.importorskip("opacus.accountants")
    hard = changed(private, privacy={"sample": {**SAMPLE, "delta": 1e-15, "accountant": "prv"}})
    many = Plan(1, 0, [Steps(rate=0.01, noise_multiplier=1.0, count=1000)])
    with pytest.raises(
        UserError, match=r"'privacy\.sample.accountant' is 'prv', which cannot tell what is spent at delta 1e-15"
    ):
        Budget(tmp_path, "job", None).charge(hard, many, many, 0, None)
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({}, "training without differential privacy"),
        ({"sample": SAMPLE, "randomness": "insecure_from_public_seed"}, "noise that everybody can compute"),
        ({"client": {**CLIENT, "where": "server"}}, "noise that only the server adds"),
        ({"sample": SAMPLE}, None),
        ({"client": CLIENT}, None),
    ],
)
def test_what_counts_for_a_limit(privacy, message, tiny):
    experiment = changed(tiny, privacy=privacy, aggregation=MEAN)
    if message is None:
        Limits(max_epsilon=8).check(experiment)
        return
    with pytest.raises(OutsideLimits, match=message):
        Limits(max_epsilon=8).check(experiment)
    Limits().check(experiment)
