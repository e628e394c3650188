"""What does not go together: every pair of choices is accepted, or refused by a rule that says why."""

import itertools
import json
import re
from typing import get_args

import pytest
from pydantic import ValidationError

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.exchange.aggregation import Aggregation
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.fields import ExperimentFields
from pt_peft.experiment.own_images import PUBLISHED, SiteData
from pt_peft.experiment.rules import MODEL_RULES, RULES, SITE_RULES, AtSite, broken
from pt_peft.model.adapted_model import build_model
from pt_peft.model.method import method_names
from pt_peft.model.planned_exchange import planned_exchange
from pt_peft.schema import parse

SAMPLE = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}
STATISTICS = {"noise_multiplier": 1.0, "max_feature_norm": 1.0, "delta": 1e-5}
CLIENT = {"noise_multiplier": 2.0, "max_update_norm": 0.1, "delta": 1e-5, "where": "server"}
CHOICES = {
    "data.source": ["site"],
    "data.task": ["multilabel", "ordinal"],
    "data.fold": [{"number": 1, "of": 5}],
    "partition.kind": ["iid", "natural", "dirichlet", "dirichlet_by_site", "shards", "quantity"],
    "method.name": ["lora", "bitfit", "sba"],
    "training.label_smoothing": [0.1],
    "training.warmup_rounds": [3.0],
    "training.proximal": [0.1],
    "training.ditto": [0.1],
    "training.control_variates": [True],
    "training.imbalance": ["weighted_loss", "federation_weights", "balanced_softmax", "fedlc", "weighted_sampler"],
    "method.head": ["local"],
    "method.roles": [{"*.lora_B": "local"}],
    "head": [
        {"start": "zeros"},
        {"start": "ridge", "finish": "ridge"},
        {"start": "lda", "penalties": [2.0]},
        {"start": "lda", "choose_by": "leave_one_out"},
        {"finish": "ridge"},
        {"finish": "lda", "penalties": [2.0]},
    ],
    "federation.rounds": [0, 4],
    "federation.site_timeout_s": [1000],
    "federation.min_sites": [1, 3, 5],
    "federation.sites": [["a"], ["a", "b", "c", "d", "e"]],
    "federation.lora_ranks": [{"a": 1}, {"z": 1}],
    "aggregation": [
        {"name": "mean", "weighting": "uniform"},
        {"name": "mean", "weighting": "inverse_variance"},
        {"name": "mean", "weighting": "class_samples"},
        {"name": "median"},
        {"name": "trimmed_mean"},
        {"name": "norm_bounded_mean"},
        {"name": "norm_bounded_mean", "bound": 1.0},
        {"name": "multi_krum"},
        {"name": "lora_product"},
        {"name": "fedex_lora"},
        {"name": "lora_fair"},
    ],
    "server_optimizer": [
        {"name": "fedavgm"},
        {"name": "fedadam"},
        {"name": "fedyogi"},
        {"name": "swa"},
        {"name": "swa", "last_rounds": 2},
    ],
    "payload": [
        {"up": {"name": "int8"}},
        {"up": {"name": "int8", "error_feedback": False}},
        {"up": {"name": "top_k"}},
        {"up": {"name": "float16"}, "down": {"name": "bfloat16"}},
    ],
    "encryption": [{"scheme": "ckks"}],
    "privacy": [
        {"sample": SAMPLE},
        {"statistics": STATISTICS},
        {"sample": SAMPLE, "statistics": STATISTICS},
        {"sample": SAMPLE, "statistics": {**STATISTICS, "delta": 1e-6}},
        {"client": CLIENT},
        {"client": {**CLIENT, "where": "sites"}},
        {"randomness": "insecure_from_public_seed"},
    ],
    "select_by": ["quadratic_kappa"],
}
BASES = [
    {"method": {"options": {}}},
    {"method": {"options": {}}, "aggregation": {"name": "mean", "weighting": "uniform"}},
    {"method": {"options": {}}, "data": {"source": "site", "task": "multilabel"}},
]
REFUSED = re.compile(r"^test: field '([a-z_.]+)' must be .+ with ([a-z_.]+).*: .+; it is .+\.$")


def with_choice(content: dict, field: str, value: object) -> dict:
    """`content` with one field of CHOICES replaced, or merged where both are sections."""
    content = json.loads(json.dumps(content))
    *parents, last = field.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    if isinstance(value, dict) and "name" not in value and section[last] is not None and last != "lora_ranks":
        value = section[last] | value
    section[last] = value
    return content


def said(message: str) -> tuple[str, ...]:
    """The two fields that a message names."""
    found = REFUSED.match(message)
    assert found, message
    return found.groups()


def refusal(content: dict) -> str | None:
    """The message that refuses an experiment; None for a valid one."""
    try:
        parse(Experiment, content, "test")
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def refusals(tiny):
    """By pair of choices, the message that refuses it, or None."""
    single = [(field, value) for field, values in CHOICES.items() for value in values]
    pairs = [pair for pair in itertools.combinations(single, 2) if pair[0][0] != pair[1][0]]
    found = {}
    for number, base in enumerate(BASES):
        start = changed(tiny, **base).model_dump(mode="json")
        for pair in [*((one,) for one in single), *pairs]:
            content = start
            for field, value in pair:
                content = with_choice(content, field, value)
            found[f"{number} {json.dumps(pair)}"] = refusal(content)
    return found


def test_a_pair_is_accepted_or_refused_by_a_rule(refusals):
    fields = {(rule.field, rule.given) for rule in RULES}
    assert {said(message) for message in refusals.values() if message} <= fields
    accepted = [message is None for message in refusals.values()]
    assert sum(accepted) > len(accepted) / 4, "most choices go together"


def test_every_rule_refuses_a_pair(refusals):
    seen = {said(message) for message in refusals.values() if message}
    assert {(rule.field, rule.given) for rule in RULES} == seen


@pytest.mark.parametrize(
    "rule", [one for one in RULES if one.given == "aggregation.name"], ids=lambda one: f"{one.field} {one.when}"
)
def test_the_documentation_names_the_aggregations_that_a_rule_is_about(tiny, rule):
    """`when` names just those with which some pair breaks the rule."""
    broken = set()
    base = tiny.model_dump(mode="json")
    for section in [{"name": "mean"}, *CHOICES["aggregation"]]:
        for field, values in CHOICES.items():
            for value in values:
                content = with_choice(with_choice(base, field, value), "aggregation", section)
                try:
                    fields = ExperimentFields.model_validate_json(json.dumps(content))
                except ValidationError:
                    continue
                if rule.breaks(fields):
                    broken.add(section["name"])
    assert broken == set(re.findall(r"'(\w+)'", rule.when))


def test_messages_name_fields_that_exist(tiny):
    content = tiny.model_dump(mode="json")
    optional = {
        "payload.up.error_feedback",
        "aggregation.weighting",
        "server_optimizer.last_rounds",
        "privacy.client.where",
        "privacy.statistics.delta",
        "privacy.statistics.projection",
        "method.options.lora.residual",
    }
    site = {"data": SiteData().model_dump(mode="json")}
    named = [(rule.field, content) for rule in (*RULES, *MODEL_RULES)] + [(rule.field, site) for rule in SITE_RULES]
    named += [(rule.given, content) for rule in (*RULES, *MODEL_RULES, *SITE_RULES)]
    for field, section in named:
        if field not in optional:
            for part in field.split("."):
                assert part in section, field
                section = section[part]


OWN = {
    "source": ["csv", "image_folder", "npz", *PUBLISHED],
    "pooled": [False, True],
    "columns": [{}, {"site": "hospital"}, {"site": "hospital", "split": None}],
}


def test_every_site_rule_refuses_some_job_and_most_go_together(tiny):
    """Of all that a site may have and a lead may ask."""
    jobs = [
        changed(
            tiny,
            data={"source": "site", "task": task, "max_images_per_site": most, "fold": fold},
            partition={"kind": kind, "feature_shift": shift},
        )
        for task in ("multiclass", "multilabel")
        for kind in ("none", "iid", "natural")
        for shift, most, fold in (
            (None, {}, None),
            ({"blur": 1.0}, {}, None),
            (None, {"val": 10}, None),
            (None, {}, {"number": 1, "of": 5}),
        )
    ]
    sites = [
        SiteData.model_validate(dict(zip(OWN, values, strict=True))) for values in itertools.product(*OWN.values())
    ]
    sites.append(SiteData.model_validate({"columns": {"label": None}, "uncertain": "ignore", "pooled": True}))
    seen, accepted, count = set(), 0, 0
    for job, own in itertools.product(jobs, sites):
        at_site = AtSite(job, own)
        rule, count = broken(SITE_RULES, at_site), count + 1
        if rule is None:
            accepted += 1
            untouched = job.partition.kind == "none" and job.partition.feature_shift is None
            assert own.pooled or (untouched and not job.data.max_images_per_site)
        else:
            seen.add(said(f"test: {rule.message(at_site)}."))
    assert seen == {(rule.field, rule.given) for rule in SITE_RULES}
    assert accepted > count / 4


SETTINGS = [
    {"aggregation": {"name": "lora_product"}},
    {"aggregation": {"name": "fedex_lora"}},
    {"method": {"options": {"lora": {"residual": True}}}},
    {"method": {"options": {"lora": {"residual": True}}}, "aggregation": {"name": "fedex_lora"}},
    {
        "method": {"options": {"lora": {"residual": True}}, "roles": {"*_residual": "local"}},
        "aggregation": {"name": "fedex_lora"},
    },
    {"federation": {"lora_ranks": {"a": 2}}},
    {"federation": {"lora_ranks": {"a": 9}}},
    {"encryption": {"scheme": "ckks"}},
    {
        "privacy": {"statistics": {**STATISTICS, "projection": 33}},
        "head": {"start": "lda"},
        "federation": {"rounds": 0},
    },
    {"privacy": {"client": {**CLIENT, "where": "sites"}}, "aggregation": {"name": "mean", "weighting": "uniform"}},
    {"training": {"control_variates": True}},
]


def test_methods_are_planned_or_refused_by_a_model_rule(tiny):
    seen, planned = set(), 0
    fields = {(rule.field, rule.given) for rule in MODEL_RULES}
    for name in method_names():
        for setting in SETTINGS:
            method = {"name": name, "options": {}, **setting.get("method", {})}
            if name != "lora" and "lora" in method["options"]:
                continue
            experiment = changed(tiny, **{**setting, "method": method})
            model = build_model(experiment.model, None)
            try:
                planned_exchange(model, experiment)
            except UserError as error:
                seen.add(said(str(error).replace("experiment:", "test:", 1)))
            else:
                planned += 1
    assert planned > len(method_names()), "most methods go with most settings"
    assert seen == fields


def test_an_experiment_that_exchanges_nothing_is_not_encrypted(tiny):
    nothing = {"name": "sba", "options": {}, "head": "frozen"}
    experiment = changed(tiny, method=nothing, encryption={"scheme": "ckks"})
    with pytest.raises(UserError, match=r"'encryption' must be null with method\.name 'sba'"):
        planned_exchange(build_model(experiment.model, None), experiment)


def test_aggregations_of_the_table_are_all_there_are():
    union, _ = get_args(Aggregation)
    names = {get_args(kind.model_fields["name"].annotation)[0] for kind in get_args(union)}
    assert names == {section["name"] for section in CHOICES["aggregation"]}
