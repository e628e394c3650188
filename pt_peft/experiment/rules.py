"""What does not go together in an experiment: every rule in one place, each with its reason.

`RULES` need the experiment alone and are checked when it is read. `SITE_RULES` also need what a site's own images are,
and are checked there (`pt_peft.data.sources`). `MODEL_RULES` also need the tensors that the method exchanges, and are
checked when the exchange is planned (`pt_peft.model.planned_exchange`). The documentation's tables are made from them.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from pydantic import BaseModel

from pt_peft.exchange.codecs import Payload
from pt_peft.exchange.lora_pairs import pairs, rank_axis
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.server_optimizers.swa import Swa
from pt_peft.experiment.fields import ExperimentFields
from pt_peft.experiment.own_images import PUBLISHED, SiteData
from pt_peft.experiment.statistics import solved

_SHOWN = 100
"""Characters of a value that a message shows at most."""


@dataclass(frozen=True)
class AtSite:
    """An experiment with ``data.source`` ``site``, at a site."""

    experiment: ExperimentFields
    data: SiteData
    """The section of the site's `site.json`."""


@dataclass(frozen=True)
class Planned:
    """An experiment, and what its method exchanges with its backbone."""

    experiment: ExperimentFields
    exchange: Exchange
    """The tensors that the method exchanges, before control variates are added."""
    residuals: frozenset[str]
    """Keys of the method's residual tensors (`pt_peft.exchange.lora_pairs.RESIDUAL`), whatever their role."""
    starts_from_all_components: bool
    """Whether the model equals the backbone at the start only with all components of its LoRA pairs."""

    @property
    def rank(self) -> int:
        """The smallest rank of the exchanged LoRA factors; 0 if there are none."""
        axes = ((spec, rank_axis(key)) for key, spec in self.exchange.specs.items())
        return min((spec.shape[axis] for spec, axis in axes if axis is not None), default=0)


Subject = TypeVar("Subject", ExperimentFields, AtSite, Planned)


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """Two fields that do not go together, or a field that does not go with what the method exchanges."""

    field: str
    """The field to change, dotted; of `site.json` in a rule for `AtSite`."""
    must_be: str
    """What it must be, in words."""
    given: str
    """The field, dotted, whose value asks for that."""
    when: str
    """The values of `given` to which the rule applies, in words, for the documentation's table."""
    because: str
    """The reason."""
    breaks: Callable[[Subject], bool]
    """Whether an experiment breaks the rule."""
    exactly: Callable[[Subject], str] | None = None
    """`must_be` in words for one experiment, where a number says more."""

    def message(self, subject: Subject) -> str:
        """One sentence that names both fields, the values seen and what would be right."""
        experiment = subject if isinstance(subject, ExperimentFields) else subject.experiment
        must_be = self.exactly(subject) if self.exactly else self.must_be
        given = _value(experiment, self.given)
        shown = "" if isinstance(given, BaseModel) else f" {_text(given)}"
        return (
            f"field '{self.field}' must be {must_be} with {self.given}{shown}: {self.because}; "
            f"it is {_text(_value(subject if isinstance(subject, AtSite) else experiment, self.field))}"
        )


def broken(rules: Iterable[Rule[Subject]], subject: Subject) -> Rule[Subject] | None:
    """The first of `rules` that `subject` breaks; None if it breaks none."""
    return next((rule for rule in rules if rule.breaks(subject)), None)


def _value(holder: object, field: str) -> object:
    """The value of a dotted field of `holder`; None where a part of it is not set."""
    value = holder
    for part in field.split("."):
        value = cast("dict[str, object]", value).get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def _text(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, str):
        return f"'{value}'"
    text = value.model_dump_json(exclude_defaults=True) if isinstance(value, BaseModel) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _weighting(experiment: ExperimentFields) -> str | None:
    return getattr(experiment.aggregation, "weighting", None)


def _changes_server_model(experiment: ExperimentFields) -> bool:
    return experiment.server_optimizer.name != "none"


def _federation_weights(experiment: ExperimentFields) -> bool:
    return experiment.training.imbalance == "federation_weights"


def _solves(experiment: ExperimentFields) -> bool:
    return any(solved(experiment, when) for when in ("start", "finish"))


def _steps_by_changes(experiment: ExperimentFields) -> bool:
    return experiment.server_optimizer.name not in ("none", "swa")


def _knows_sites(data: SiteData) -> bool:
    return data.source in PUBLISHED or (data.source == "csv" and data.columns.site is not None)


_NO_OPINION = "components that a site of a smaller rank does not have would count as its opinion that they are zero"
_COMPONENTS = (
    "it makes LoRA's components anew in each round, so that what a site has kept of the old ones fits none of them"
)
_ENCRYPTED = "the server can only add what it cannot read, and "
_ONE_SUM = "its noise is made for a sum in which every site counts once"
_NOT_SOLVED = "without 'ridge' and 'lda'"
_SITES_COUNT = "sites would send how many images of each class they have, without noise"
_ONE_LABEL = "it counts images of classes that exclude one another"
_ROTATES = "a method that trains other tensors in each round, such as 'sba'"

RULES: tuple[Rule[ExperimentFields], ...] = (
    Rule(
        "partition.kind", "'none'", "data.source", "'lesions'", "each site draws its own images",
        lambda e: e.data.source == "lesions" and e.partition.kind != "none",
    ),
    Rule(
        "data.task", "'multiclass' or 'ordinal'", "data.source", "'lesions'", "each of its images has one label",
        lambda e: e.data.source == "lesions" and e.data.task == "multilabel",
    ),
    Rule(
        "data.fold", "null", "data.source", "'lesions'", "each site draws as many images as the experiment says",
        lambda e: e.data.source == "lesions" and e.data.fold is not None,
    ),
    Rule(
        "training.imbalance", "another than 'federation_weights' and 'fedlc'", "data.task", "'multilabel'", _ONE_LABEL,
        lambda e: e.data.task == "multilabel" and e.training.imbalance in ("federation_weights", "fedlc"),
    ),
    Rule(
        "aggregation.weighting", "another than 'class_samples'", "data.task", "'multilabel'", _ONE_LABEL,
        lambda e: e.data.task == "multilabel" and _weighting(e) == "class_samples",
    ),
    Rule(
        "select_by", "another metric than 'quadratic_kappa'", "data.task", "'multiclass' or 'multilabel'",
        "kappa weighs the distance between grades",
        lambda e: e.select_by == "quadratic_kappa" and e.data.task != "ordinal",
    ),
    Rule(
        "federation.site_timeout_s", "at most round_timeout_s", "federation.round_timeout_s", "a shorter deadline",
        "the server would leave the site out before it gives up",
        lambda e: e.federation.site_timeout_s > e.federation.round_timeout_s,
    ),
    Rule(
        "federation.min_sites", "at most the number of sites", "federation.sites", "fewer names",
        "the quorum could never be met",
        lambda e: 0 < len(e.federation.sites) < e.federation.min_sites,
    ),
    Rule(
        "federation.lora_ranks", "for names among the sites", "federation.sites", "other names",
        "no other site takes part",
        lambda e: bool(e.federation.sites) and not e.federation.lora_ranks.keys() <= set(e.federation.sites),
    ),
    Rule(
        "federation.min_sites", "at least the number of results that the rule needs", "aggregation.name",
        "'median', 'trimmed_mean', 'norm_bounded_mean', 'multi_krum'", "fewer results cannot outvote one that lies",
        lambda e: e.federation.min_sites < e.aggregation.sites_needed,
        exactly=lambda e: f"at least {e.aggregation.sites_needed}",
    ),
    Rule(
        "server_optimizer.name", "'none'", "aggregation.name", "'lora_product', 'fedex_lora', 'lora_fair'",
        "it moves parts of an update from one tensor to another, so that those of two rounds neither subtract nor add",
        lambda e: e.aggregation.refactors and _changes_server_model(e),
    ),
    Rule(
        "training.control_variates", "false", "aggregation.name",
        "'median', 'trimmed_mean', 'norm_bounded_mean', 'multi_krum'",
        "control variates are averaged, and those of one site would correct the gradients of all",
        lambda e: e.aggregation.robust and e.training.control_variates,
    ),
    Rule(
        "training.control_variates", "false", "aggregation.weighting", "'inverse_variance', 'class_samples'",
        "control variates need weights that do not change from round to round or row to row",
        lambda e: e.training.control_variates and _weighting(e) in ("inverse_variance", "class_samples"),
    ),
    Rule(
        "training.control_variates", "false", "aggregation.name", "'lora_product'", _COMPONENTS,
        lambda e: e.training.control_variates and not e.aggregation.keeps_components,
    ),
    Rule(
        "training.ditto", "0", "aggregation.name", "'lora_product'", _COMPONENTS,
        lambda e: e.training.ditto > 0 and not e.aggregation.keeps_components,
    ),
    Rule(
        "federation.lora_ranks", "empty", "aggregation.name",
        "'median', 'trimmed_mean', 'norm_bounded_mean', 'multi_krum'", _NO_OPINION,
        lambda e: bool(e.federation.lora_ranks) and e.aggregation.robust,
    ),
    Rule(
        "federation.lora_ranks", "empty", "aggregation.weighting", "'inverse_variance'", _NO_OPINION,
        lambda e: bool(e.federation.lora_ranks) and _weighting(e) == "inverse_variance",
    ),
    Rule(
        "federation.lora_ranks", "empty", "server_optimizer.name", "all but 'none' and 'swa'", _NO_OPINION,
        lambda e: bool(e.federation.lora_ranks) and _steps_by_changes(e),
    ),
    Rule(
        "server_optimizer.last_rounds", "at most federation.rounds", "federation.rounds", "fewer rounds",
        "there are no other aggregates to average",
        lambda e: isinstance(e.server_optimizer, Swa) and e.server_optimizer.last_rounds > e.federation.rounds,
    ),
    Rule(
        "training.warmup_rounds", "at most federation.rounds", "federation.rounds", "fewer rounds",
        "the step sizes would never reach their peak",
        lambda e: e.training.warmup_rounds > e.federation.rounds > 0,
    ),
    Rule(
        "payload.up.error_feedback", "false", "aggregation.name", "'lora_product'", _COMPONENTS,
        lambda e: e.payload.up.remembers and not e.aggregation.keeps_components,
    ),
    Rule(
        "aggregation.name", "'mean'", "encryption", "set",
        _ENCRYPTED + "other rules compare or change the sites' tensors",
        lambda e: e.encryption is not None and e.aggregation.name != "mean",
    ),
    Rule(
        "aggregation.weighting", "'samples' or 'uniform'", "encryption", "set",
        _ENCRYPTED + "a variance is no sum, and counts of classes would not be encrypted",
        lambda e: e.encryption is not None and _weighting(e) in ("inverse_variance", "class_samples"),
    ),
    Rule(
        "server_optimizer.name", "'none'", "encryption", "set", _ENCRYPTED + "an optimizer needs to read the mean",
        lambda e: e.encryption is not None and _changes_server_model(e),
    ),
    Rule(
        "training.control_variates", "false", "encryption", "set",
        _ENCRYPTED + "the server's steps with variates read them",
        lambda e: e.encryption is not None and e.training.control_variates,
    ),
    Rule(
        "privacy.client.where", "'sites'", "encryption", "set", _ENCRYPTED + "to clip it would have to read",
        lambda e: e.encryption is not None and e.privacy.client is not None and e.privacy.client.where == "server",
    ),
    Rule(
        "payload", "float32 both ways", "encryption", "set", "what travels is ciphertexts",
        lambda e: e.encryption is not None and e.payload != Payload(),
    ),
    Rule(
        "privacy.statistics", "null", "encryption", "set", _ENCRYPTED + "it mends what noise has done to the sums",
        lambda e: e.encryption is not None and e.privacy.statistics is not None,
    ),
    Rule(
        "federation.lora_ranks", "empty", "encryption", "set", "tensors that differ in shape do not add up",
        lambda e: e.encryption is not None and bool(e.federation.lora_ranks),
    ),
    Rule(
        "privacy.randomness", "'secret'", "privacy.sample", "null, with privacy.statistics and privacy.client null too",
        "without them there is no noise to draw",
        lambda e: not e.privacy.asked and e.privacy.randomness != "secret",
    ),
    Rule(
        "training.imbalance", "'none'", "privacy.sample", "set", "it counts the labels of the images, without noise",
        lambda e: e.privacy.sample is not None and e.training.imbalance != "none",
    ),
    Rule(
        "aggregation.weighting", "another than 'class_samples'", "privacy.sample", "set", _SITES_COUNT,
        lambda e: e.privacy.sample is not None and _weighting(e) == "class_samples",
    ),
    Rule(
        "training.imbalance", "another than 'federation_weights'", "privacy.client", "set", _SITES_COUNT,
        lambda e: e.privacy.client is not None and _federation_weights(e),
    ),
    Rule(
        "training.imbalance", "another than 'federation_weights'", "privacy.statistics", "set", _SITES_COUNT,
        lambda e: e.privacy.statistics is not None and e.privacy.sample is None and _federation_weights(e),
    ),
    Rule(
        "aggregation.weighting", "another than 'class_samples'", "privacy.statistics", "set", _SITES_COUNT,
        lambda e: e.privacy.statistics is not None and e.privacy.sample is None and _weighting(e) == "class_samples",
    ),
    Rule(
        "training.imbalance", "another than 'federation_weights'", "encryption", "set",
        _ENCRYPTED + "counts of classes would not be encrypted",
        lambda e: e.encryption is not None and _federation_weights(e),
    ),
    Rule(
        "aggregation.name", "'mean'", "training.imbalance", "'federation_weights'",
        "the site's weight is that of its images",
        lambda e: _federation_weights(e) and e.aggregation.name != "mean",
    ),
    Rule(
        "aggregation.weighting", "'samples' or 'class_samples'", "training.imbalance", "'federation_weights'",
        "the site's weight is that of its images",
        lambda e: _federation_weights(e) and _weighting(e) in ("uniform", "inverse_variance"),
    ),
    Rule(
        "training.control_variates", "false", "training.imbalance", "'federation_weights'",
        "the variates' mean would have other weights than the models'",
        lambda e: _federation_weights(e) and e.training.control_variates,
    ),
    Rule(
        "method.head", "'exchanged'", "aggregation.weighting", "'class_samples'", "no classifier travels",
        lambda e: _weighting(e) == "class_samples" and e.method.head != "exchanged",
    ),
    Rule(
        "aggregation.name", "'mean'", "privacy.client", "set", _ONE_SUM,
        lambda e: e.privacy.client is not None and e.aggregation.name != "mean",
    ),
    Rule(
        "aggregation.weighting", "'uniform'", "privacy.client", "set", _ONE_SUM,
        lambda e: e.privacy.client is not None and _weighting(e) not in (None, "uniform"),
    ),
    Rule(
        "training.control_variates", "false", "privacy.client", "set",
        "each site would send a second vector, its mean gradient, without noise",
        lambda e: e.privacy.client is not None and e.training.control_variates,
    ),
    Rule(
        "federation.lora_ranks", "empty", "privacy.client", "set",
        "sites of a smaller rank add no noise to the components that they do not send",
        lambda e: e.privacy.client is not None and bool(e.federation.lora_ranks),
    ),
    Rule(
        "head", _NOT_SOLVED, "data.task", "'multilabel'", "the closed form is for labels that exclude one another",
        lambda e: e.data.task == "multilabel" and _solves(e),
    ),
    Rule(
        "head", "without 'zeros', 'ridge' and 'lda'", "method.head", "'local' or 'frozen'", "no classifier travels",
        lambda e: e.method.head != "exchanged" and (e.head.start == "zeros" or _solves(e)),
    ),
    Rule(
        "head", _NOT_SOLVED, "method.roles", "'local' for some tensors",
        "the features are then not the same function at all sites, and their sums mean nothing",
        lambda e: "local" in e.method.roles.values() and _solves(e),
    ),
    Rule(
        "federation.lora_ranks", "empty", "head.finish", "'ridge' or 'lda'",
        "at a smaller rank the features are another function than at the other sites",
        lambda e: bool(e.federation.lora_ranks) and solved(e, "finish") is not None,
    ),
    Rule(
        "head", _NOT_SOLVED, "aggregation.name", "'median', 'trimmed_mean', 'norm_bounded_mean', 'multi_krum'",
        "a sum of features has no defence against a site that lies",
        lambda e: e.aggregation.robust and _solves(e),
    ),
    Rule(
        "privacy.statistics", "set", "privacy.sample", "set, with 'ridge' or 'lda' in head",
        "the sums of features would leave without noise",
        lambda e: e.privacy.sample is not None and e.privacy.statistics is None and _solves(e),
    ),
    Rule(
        "privacy.sample", "set", "privacy.statistics", "set, with 1 or more rounds",
        "the rounds of training would tell of the same images without noise",
        lambda e: e.privacy.statistics is not None and e.privacy.sample is None and e.federation.rounds > 0,
    ),
    Rule(
        "privacy.statistics.delta", "that of privacy.sample", "privacy.sample", "set, with privacy.statistics",
        "their costs add up to one epsilon",
        lambda e: e.privacy.statistics is not None
        and e.privacy.sample is not None
        and e.privacy.statistics.delta != e.privacy.sample.delta,
    ),
    Rule(
        "head", "with 'lda' and without 'ridge'", "privacy.statistics", "set",
        "its noise is made for one release, which 'ridge' would need a second for the weights of the classes",
        lambda e: e.privacy.statistics is not None
        and (not _solves(e) or "ridge" in (solved(e, "start"), solved(e, "finish"))),
    ),
    Rule(
        "head.choose_by", "'validation'", "privacy.statistics", "set",
        "the other choice is by training images, without noise",
        lambda e: e.privacy.statistics is not None and e.head.choose_by == "leave_one_out",
    ),
    Rule(
        "head", _NOT_SOLVED, "privacy.client", "set", "the sums of features would leave without noise",
        lambda e: e.privacy.client is not None and _solves(e),
    ),
    Rule(
        "federation.rounds", "1 or more", "head.start", "'seed' or 'zeros'", "nothing would be learned",
        lambda e: not e.federation.rounds and solved(e, "start") is None,
    ),
    Rule(
        "head.finish", "'trained'", "federation.rounds", "0", "without a round between them the start is the finish",
        lambda e: not e.federation.rounds and solved(e, "finish") is not None,
    ),
    Rule(
        "head.penalties", "at most 1", "head.start", "'lda'", "they are shares of a covariance",
        lambda e: e.head.start == "lda" and max(e.head.penalties) > 1,
    ),
    Rule(
        "head.penalties", "at most 1", "head.finish", "'lda'", "they are shares of a covariance",
        lambda e: e.head.finish == "lda" and max(e.head.penalties) > 1,
    ),
)  # fmt: skip

SITE_RULES: tuple[Rule[AtSite], ...] = (
    Rule(
        "data.pooled", "true", "partition.kind", "all but 'none'",
        "only images that simulated sites share are dealt out, and a site of its own uses all that it has",
        lambda s: s.experiment.partition.kind != "none" and not s.data.pooled,
    ),
    Rule(
        "data.pooled", "true", "partition.feature_shift", "set",
        "only simulated sites need to be made to look different",
        lambda s: s.experiment.partition.feature_shift is not None and not s.data.pooled,
    ),
    Rule(
        "data.pooled", "true", "data.max_images_per_site", "set",
        "a site of its own uses all that it has, and what two jobs count tells of an image that only one of them takes",
        lambda s: bool(s.experiment.data.max_images_per_site) and not s.data.pooled,
    ),
    Rule(
        "data.pooled", "true", "data.fold", "set",
        "a site of its own keeps its splits, and what two folds count tells of an image that only one of them takes",
        lambda s: s.experiment.data.fold is not None and not s.data.pooled,
    ),
    Rule(
        "data.source", "'csv', 'image_folder', 'ham10000' or 'isic2019'", "data.fold", "set",
        "the others have a published split, which stays",
        lambda s: s.experiment.data.fold is not None and s.data.source in ("npz", "fed_isic2019"),
    ),
    Rule(
        "data.columns.split", "null", "data.fold", "set",
        "the split that the table assigns is the site's to keep, or to give up",
        lambda s: s.experiment.data.fold is not None and s.data.source == "csv" and s.data.columns.split is not None,
    ),
    Rule(
        "data.source", f"'csv' with data.columns.site, or one of {', '.join(PUBLISHED)}", "partition.kind", "'natural'",
        "the site of each image must be known",
        lambda s: s.experiment.partition.kind == "natural" and not _knows_sites(s.data),
    ),
    Rule(
        "data.source", "'csv' or 'npz'", "data.task", "'multilabel'", "other sources give each image one label",
        lambda s: s.experiment.data.task == "multilabel" and s.data.source not in ("csv", "npz"),
    ),
    Rule(
        "data.uncertain", "null", "data.task", "'multiclass' or 'ordinal'", "the one label of an image must be known",
        lambda s: s.experiment.data.task != "multilabel" and s.data.uncertain is not None,
    ),
)  # fmt: skip

MODEL_RULES: tuple[Rule[Planned], ...] = (
    Rule(
        "aggregation.name", "a rule for any tensors", "method.name", "a method without LoRA's factors A and B",
        "the method exchanges no such pair",
        lambda p: p.experiment.aggregation.refactors and not pairs(p.exchange.specs),
    ),
    Rule(
        "method.roles", "'exchanged' for lora_residual", "aggregation.name", "'fedex_lora'",
        "the server computes it and every site needs it",
        lambda p: p.experiment.aggregation.computes_residual and bool(p.residuals - p.exchange.computed),
    ),
    Rule(
        "method.options.lora.residual", "true", "aggregation.name", "'fedex_lora'",
        "the server sends what the factors do not hold as a tensor besides",
        lambda p: p.experiment.aggregation.computes_residual and not p.residuals,
    ),
    Rule(
        "method.options.lora.residual", "false", "aggregation.name", "all but 'fedex_lora'",
        "no other rule computes it",
        lambda p: not p.experiment.aggregation.computes_residual and bool(p.exchange.computed),
    ),
    Rule(
        "federation.lora_ranks", "at most the method's rank", "method.name",
        "a method of a smaller rank, or without LoRA's factors",
        "a site trains the first components of those that the method has",
        lambda p: max(p.experiment.federation.lora_ranks.values(), default=0) > p.rank,
        exactly=lambda p: f"at most {p.rank} for each site" if p.rank else "empty",
    ),
    Rule(
        "federation.lora_ranks", "empty", "method.name", "one that starts from all of its components, such as 'pissa'",
        "fewer components would start from another model than the backbone; method 'lora' would do",
        lambda p: bool(p.experiment.federation.lora_ranks) and p.starts_from_all_components,
    ),
    Rule(
        "encryption", "null", "method.name", _ROTATES, "what differs from round to round does not add up",
        lambda p: p.experiment.encryption is not None and bool(p.exchange.rotating),
    ),
    Rule(
        "encryption", "null", "method.name", "one that exchanges nothing, as it is set up",
        "there is nothing to encrypt",
        lambda p: p.experiment.encryption is not None and not p.exchange.specs,
    ),
    Rule(
        "privacy.client", "null", "method.name", _ROTATES, "its noise is not made for that",
        lambda p: p.experiment.privacy.client is not None and bool(p.exchange.rotating),
    ),
    Rule(
        "privacy.statistics.projection", "at most the number of features", "backbone.name", "one of fewer features",
        "a projection makes them fewer",
        lambda p: p.experiment.privacy.statistics is not None
        and (p.experiment.privacy.statistics.projection or 0) > p.exchange.features > 0,
        exactly=lambda p: f"at most {p.exchange.features}",
    ),
    Rule(
        "training.control_variates", "false", "method.name", _ROTATES, "a variate needs a gradient in every round",
        lambda p: p.experiment.training.control_variates and bool(p.exchange.rotating),
    ),
)  # fmt: skip
