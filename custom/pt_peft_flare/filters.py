"""The last gate of a site: only what is on the allow-list leaves, and the ledger says so."""

import contextlib
from typing import TypeVar

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from pt_peft import reasons
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.encrypted_statistics import check_own
from pt_peft.environment import own_code
from pt_peft.errors import ReasonedError, UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, check_tensors, payload_bytes
from pt_peft.experiment.admission import IMAGE_STATISTICS, STATISTICS, image_statistics_refusals
from pt_peft.experiment.encryption import Encryption
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import stage_bytes, stage_of, up_specs
from pt_peft.federation.head_statistics import check_release, check_sums, checked_losses
from pt_peft.federation.image_statistics import ImageReport
from pt_peft.federation.known_names import known_names
from pt_peft.federation.reports import ChoiceReport, EvaluationReport, StatisticsReport, TrainingReport
from pt_peft.reasons import Reason
from pt_peft.schema import parse
from pt_peft_flare import ledger
from pt_peft_flare.allowed_exchange import read_exchange
from pt_peft_flare.ckks_contexts import site_cipher
from pt_peft_flare.messages import RETURN_CODES, STAGE, failure, reason_of
from pt_peft_flare.run_context import check_job, read_experiment, read_site, run_dir
from pt_peft_flare.wire import WireTensors

_META = {MetaKey.INITIAL_METRICS, FLMetaKey.NUM_STEPS_CURRENT_ROUND, AppConstants.CURRENT_ROUND, STAGE}
"""Metadata of a result of our learner. Any other does not leave, and the ledger names it."""
Report = TypeVar("Report", TrainingReport, EvaluationReport, StatisticsReport, ChoiceReport)

_SHOWN = 500
"""Characters of an error in the ledger."""


class EgressFilter(Filter):
    """Task-result filter. Rebuilds each result from nothing but the allowed parts, and fails closed.

    Allowed are:

    - for ``train``: the tensors of the round, or with ``encryption`` nothing but their ciphertexts, and a
      `TrainingReport`;
    - for ``validate``: an `EvaluationReport`;
    - for ``statistics``: the statistics of the stage, and a `StatisticsReport` or a `ChoiceReport`;
    - for ``fed_stats``: an `ImageReport`, whose counts are of as many images as the site's limits ask for;
    - for ``submit_model``: the exchanged tensors trained so far, unless they have to be encrypted;
    - from a site that failed: a reason of `pt_peft.reasons`, its words checked against what the lead knows already.

    Which tensors a method exchanges is found from the experiment, not from what the learner says. Anything else is held
    back: the site answers with the reason instead, and the ledger has the attempt.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exchange: Exchange | None = None
        self._cipher: Cipher | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Returns what may leave. Never raises for what is wrong with `shareable`.

        Raises:
            OSError: if the ledger cannot be written; FLARE then sends nothing.
        """
        task: str = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        number = shareable.get_header(AppConstants.CURRENT_ROUND)
        round_number: int | None = number if isinstance(number, int) else None
        try:
            if shareable.get_return_code() != ReturnCode.OK:
                reason = self._cleared(reason_of(shareable), fl_ctx)
                allowed, described = failure(reason), ledger.Entry(reason=reason.to_json())
            else:
                result = from_shareable(shareable)
                dxo, described = self._allowed(task, round_number, result, fl_ctx)
                allowed = dxo.to_shareable()
                if dropped := result.meta.keys() - _META:
                    described["dropped"] = [*sorted(str(key)[:100] for key in dropped)]
        except Exception as error:  # the filter fails closed
            self.log_error(fl_ctx, f"task {task}: held back by the egress filter: {error}", fire_event=False)
            reason = self._cleared(_why_held_back(error), fl_ctx)
            allowed, described = failure(reason), ledger.Entry(reason=reason.to_json(), held_back=str(error)[:_SHOWN])
        entry: ledger.Entry = {"job": fl_ctx.get_job_id(), "task": task, "round": round_number}
        ledger.append(run_dir(fl_ctx), {**entry, **described})
        return allowed

    def _allowed(self, task: str, round_number: int | None, dxo: DXO, fl_ctx: FLContext) -> tuple[DXO, ledger.Entry]:
        """The part of a result that may leave, and its line in the ledger. Raises an error for any other result."""
        site = read_site(fl_ctx)
        experiment = check_job(site, fl_ctx)
        if task == AppConstants.TASK_TRAIN:
            if round_number is None:
                raise TensorError(f"a result of '{task}' names no round")
            return self._allowed_training(experiment, round_number, dxo, fl_ctx)
        if task == AppConstants.TASK_VALIDATION:
            if dxo.data_kind != DataKind.METRICS:
                raise TensorError(f"a result of '{task}' is {dxo.data_kind}, not {DataKind.METRICS}")
            report = _own(parse(EvaluationReport, dxo.data, "report").checked(experiment))
            for split in report.splits():
                site.limits.check_evaluated(split.count)
            fields = report.model_dump(mode="json")
            return DXO(DataKind.METRICS, data=fields), {**ledger.tensor_entry({}, {}), "report": fields}
        if task == STATISTICS:
            return self._allowed_statistics(experiment, round_number, dxo, fl_ctx)
        if task == IMAGE_STATISTICS:
            return _allowed_image_statistics(experiment, site, dxo)
        if task == AppConstants.TASK_SUBMIT_MODEL and not experiment.encryption:
            return self._allowed_model(experiment, dxo, fl_ctx)
        raise UserError(f"nothing may leave as a result of task '{task}'").told_as(reasons.HeldBack(what="task"))

    def _allowed_training(
        self, experiment: Experiment, round_number: int, dxo: DXO, fl_ctx: FLContext
    ) -> tuple[DXO, ledger.Entry]:
        exchange = self._known_exchange(experiment, fl_ctx)
        limits = read_site(fl_ctx).limits
        limits.check_exchange(experiment, exchange)
        limits.check_bytes(experiment, exchange, round_number)
        report = _own(parse(TrainingReport, dxo.get_meta_prop(MetaKey.INITIAL_METRICS), "report").checked(experiment))
        limits.check_images(experiment, report.num_samples)
        for split in report.splits():
            limits.check_evaluated(split.count)
        fields = report.model_dump(mode="json")
        specs = exchange.up(round_number)
        if experiment.encryption:
            weight = experiment.aggregation.weight(report.num_samples)
            cipher = self._known_cipher(experiment.encryption, exchange, fl_ctx)
            tensors, norm = cipher.check_own(_weights(dxo), weight)
            entry = ledger.encrypted_entry(tensors, specs, norm)
        else:
            codec = experiment.payload.up
            tensors = check_tensors(_weights(dxo), codec.specs(specs))
            entry = ledger.tensor_entry(tensors, codec.decode(tensors, specs))
        entry["report"] = fields
        if experiment.privacy.asked:
            entry["privacy"] = applied(experiment, report)
        meta = {MetaKey.INITIAL_METRICS: fields, FLMetaKey.NUM_STEPS_CURRENT_ROUND: report.num_samples}
        return DXO(DataKind.WEIGHTS, data=WireTensors(tensors), meta=meta), entry

    def _allowed_statistics(
        self, experiment: Experiment, round_number: int | None, dxo: DXO, fl_ctx: FLContext
    ) -> tuple[DXO, ledger.Entry]:
        exchange, limits = self._known_exchange(experiment, fl_ctx), read_site(fl_ctx).limits
        stage = stage_of(experiment, dxo.get_meta_prop(STAGE), round_number)
        if stage is None:
            raise UserError(f"the experiment has no such statistics after {round_number} rounds").told_as(
                reasons.HeldBack(what="task")
            )
        limits.check_exchange(experiment, exchange)
        limits.check_nbytes(stage_bytes(experiment, exchange, stage).up)
        specs, payload = up_specs(experiment, exchange, stage), _weights(dxo)
        said = dxo.get_meta_prop(MetaKey.INITIAL_METRICS)
        if stage.name == "choice":
            tensors = check_tensors(payload, specs)
            report = _own(parse(ChoiceReport, said, "report").checked(experiment))
            tensors = {key: checked_losses(value, report) for key, value in tensors.items()}
            described = ledger.tensor_entry(tensors, tensors)
            for split in report.splits():
                limits.check_evaluated(split.count)
        else:
            report = _own(parse(StatisticsReport, said, "report").checked(experiment))
            limits.check_sums(report.num_samples)
            if experiment.encryption:
                known = self._known_cipher(experiment.encryption, exchange, fl_ctx)
                tensors, values, norm = check_own(known, specs, payload, report.num_samples)
                described = ledger.encrypted_entry(tensors, specs, norm)
            else:
                values = tensors = check_tensors(payload, specs)
                described = ledger.tensor_entry(tensors, tensors)
            if private := experiment.privacy.statistics:
                check_release(values, report.num_samples, private.noise_multiplier)
            else:
                check_sums(values, report.num_samples, least=limits.least_counted)
        fields = report.model_dump(mode="json")
        entry: ledger.Entry = {"stage": stage.name, **described, "report": fields}
        if (private := experiment.privacy.statistics) and isinstance(report, StatisticsReport):
            said = {"randomness": experiment.privacy.randomness, "epsilon": report.epsilon}
            entry["privacy"] = {**said, "statistics": private.model_dump(mode="json")}
        return DXO(DataKind.WEIGHTS, data=WireTensors(tensors), meta={MetaKey.INITIAL_METRICS: fields}), entry

    def _allowed_model(self, experiment: Experiment, dxo: DXO, fl_ctx: FLContext) -> tuple[DXO, ledger.Entry]:
        task = AppConstants.TASK_SUBMIT_MODEL
        last = dxo.get_meta_prop(AppConstants.CURRENT_ROUND)
        if experiment.privacy.client:
            message = f"a result of '{task}' has no noise that protects the site"
            raise UserError(message).told_as(reasons.HeldBack(what="task"))
        if not isinstance(last, int):
            raise TensorError(f"a result of '{task}' does not say in which round it was trained")
        limits = read_site(fl_ctx).limits
        limits.check_own_model()
        exchange = self._known_exchange(experiment, fl_ctx)
        limits.check_exchange(experiment, exchange)
        tensors = check_tensors(_weights(dxo), exchange.changed(last + 1))
        limits.check_nbytes(payload_bytes(tensors))
        return DXO(DataKind.WEIGHTS, data=WireTensors(tensors)), ledger.tensor_entry(tensors, tensors)

    def _cleared(self, reason: Reason, fl_ctx: FLContext) -> Reason:
        """`reason` with no word that the lead does not know. Never raises: what cannot be found out is not known."""
        experiment = exchange = None
        with contextlib.suppress(Exception):
            experiment = read_experiment(fl_ctx)
            if getattr(reason, "tensor", None):  # else it is not worth a worker
                exchange = self._known_exchange(experiment, fl_ctx)
        return reason.cleared(known_names(experiment, exchange) | RETURN_CODES)

    def _known_exchange(self, experiment: Experiment, fl_ctx: FLContext) -> Exchange:
        if self._exchange is None:
            rank = experiment.federation.lora_ranks.get(fl_ctx.get_identity_name())
            self._exchange = read_exchange(experiment, read_site(fl_ctx), fl_ctx).at_rank(rank)
        return self._exchange

    def _known_cipher(self, encryption: Encryption, exchange: Exchange, fl_ctx: FLContext) -> Cipher:
        if self._cipher is None:
            self._cipher = site_cipher(encryption, exchange, fl_ctx)
        return self._cipher


def _allowed_image_statistics(experiment: Experiment, site: Site, dxo: DXO) -> tuple[DXO, ledger.Entry]:
    for refusal in image_statistics_refusals(experiment, site.limits):
        raise refusal
    if dxo.data_kind != DataKind.METRICS:
        raise TensorError(f"a result of '{IMAGE_STATISTICS}' is {dxo.data_kind}, not {DataKind.METRICS}")
    report = parse(ImageReport, dxo.data, "report").checked(experiment)
    report.check_limits(site.limits)
    fields = report.model_dump(mode="json")
    return DXO(DataKind.METRICS, data=fields), {**ledger.tensor_entry({}, {}), "report": fields}


def applied(experiment: Experiment, report: TrainingReport) -> ledger.Entry:
    """What the ledger says of the site's own noise on what leaves after a training.

    Its ``epsilon`` is that of the job so far, null where noise is not secret.
    """
    privacy = experiment.privacy
    entry: ledger.Entry = {"randomness": privacy.randomness, "epsilon": report.epsilon}
    if sample := privacy.sample:
        entry["sample"] = sample.model_dump(mode="json")
    if (client := privacy.client) and client.where == "sites":
        entry["client"] = {
            **client.model_dump(mode="json"),
            "own_noise_multiplier": client.share(experiment.federation.min_sites),
        }
    return entry


def _own(report: Report) -> Report:
    """`report` if it says which code runs here. Raises UserError."""
    if report.code != own_code():
        raise UserError("report: code is another than the one that runs here.", "code")
    return report


def _why_held_back(error: Exception) -> Reason:
    """What the lead is told of a result that must not leave."""
    match error:
        case TensorError(reason=reasons.Payload(tensor=tensor)):
            return reasons.HeldBack(what="tensors", tensor=tensor)
        case UserError(reason=reasons.Failed(field=field)):
            return reasons.HeldBack(what="report", field=field)
        case ReasonedError(reason=reason):
            return reason
        case _:
            return reasons.HeldBack(what="error")


def _weights(dxo: DXO) -> object:
    if dxo.data_kind != DataKind.WEIGHTS:
        raise TensorError(f"the result is {dxo.data_kind}, not {DataKind.WEIGHTS}")
    return dxo.data
