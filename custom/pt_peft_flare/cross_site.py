"""What FLARE's cross-site evaluation finds: every model on every site's images.

FLARE's workflow, `CrossSiteModelEval`, asks each site for its own model, sends all models to all sites, and tells of it
by events. FLARE would take whatever sites say; here a result counts if it is the report of an evaluation that it should
be, and there is a reason where there is none. What does not count FLARE does not get to see.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from pt_peft import reasons
from pt_peft.exchange.tensors import TensorError, payload_sha256
from pt_peft.federation.reports import EvaluationReport
from pt_peft.reasons import Reason
from pt_peft_flare.messages import reason_of
from pt_peft_flare.round_results import LeftOut, RoundResults
from pt_peft_flare.wire import WireTensors, come


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that was sent to the sites."""

    results: RoundResults[EvaluationReport]
    sha256: str | None
    """`payload_sha256` of the tensors of a site's own model, as they came; None for the server's models."""
    began: float = field(default_factory=time.monotonic)
    """When the first site was sent it, by the monotonic clock."""


class CrossSite:
    """Collects reports and reasons from the events of FLARE's workflow.

    Attributes:
        models: the models that were sent, by FLARE's names: ``SRV_`` and a file of the server's, or the site whose own
            it is.
        left_out: sites whose own model did not come.
    """

    def __init__(self, accept: Callable[[FLModel], EvaluationReport], cleared: Callable[[Reason], Reason]):
        """Begins without models.

        Args:
            accept: see `RoundResults`.
            cleared: makes of a site's reason what is shown of it.
        """
        self.models: dict[str, EvaluatedModel] = {}
        self.left_out: dict[str, LeftOut] = {}
        self._accept = accept
        self._cleared = cleared
        self._began = time.monotonic()
        self._sites: set[str] = set()
        self._own: dict[str, str] = {}
        """Digests of the sites' own models that came."""

    def hear(self, event_type: str, fl_ctx: FLContext) -> None:
        """Takes what an event of FLARE's workflow tells; other events tell nothing."""
        if event_type == AppEventType.CROSS_VAL_INIT:
            self._began = time.monotonic()
        elif event_type == AppEventType.RECEIVE_BEST_MODEL:
            owner = fl_ctx.get_prop(AppConstants.RECEIVED_MODEL_OWNER)
            self._take_model(owner, fl_ctx.get_prop(AppConstants.RECEIVED_MODEL))
        elif event_type == AppEventType.SEND_MODEL_FOR_VALIDATION:
            self._sites.update(fl_ctx.get_prop(AppConstants.PARTICIPATING_CLIENTS))
            name = fl_ctx.get_prop(AppConstants.MODEL_OWNER)
            if name not in self.models:
                self.models[name] = EvaluatedModel(RoundResults(self._accept, self._cleared), self._own.get(name))
        elif event_type == AppEventType.VALIDATION_RESULT_RECEIVED:
            name, site = fl_ctx.get_prop(AppConstants.MODEL_OWNER), fl_ctx.get_prop(AppConstants.DATA_CLIENT)
            result = fl_ctx.get_prop(AppConstants.VALIDATION_RESULT)
            # The name is what the site says, which may be anything, and counts for nobody else.
            model = self.models.get(name) if isinstance(name, str) else None
            if not (model and self._take_report(model.results, site, result)):
                # FLARE would name a file by what the site says, and end the task for all sites where that fails.
                result.clear()

    def close(self, gone: Mapping[str, Reason]) -> None:
        """Notes a reason wherever there is neither a result nor one yet.

        Args:
            gone: sites that could not answer any more, with the reason.
        """
        now = time.monotonic()
        for model in self.models.values():
            seconds = round(now - model.began)
            model.results.close({site: gone.get(site) or reasons.NoAnswer(seconds=seconds) for site in self._sites})
        if self._own or self.left_out:  # else no site was asked for its own
            for site in self._sites.difference(self._own, self.left_out):
                reason = gone.get(site) or reasons.NoAnswer(seconds=round(now - self._began))
                self.left_out[site] = LeftOut.of(reason)

    def _take_model(self, site: str, result: Shareable) -> None:
        if site in self._own:
            # FLARE would have all sites evaluate one after the other for as long as a site sends them.
            result.set_return_code(ReturnCode.EXECUTION_RESULT_ERROR)
            return
        if result.get_return_code() != ReturnCode.OK:
            self.left_out[site] = LeftOut.of(self._cleared(reason_of(result)))
            return
        try:
            dxo = from_shareable(result)
            tensors = come(dxo.data)
            # Of any other kind FLARE would make several models, or none.
            if dxo.data_kind != DataKind.WEIGHTS or not isinstance(tensors, WireTensors):
                raise TensorError("the site's own model is no tensors")
        except (TensorError, ValueError):
            # FLARE looks at the code next, and would send to all sites for ever what none of them can read.
            result.set_return_code(ReturnCode.EXECUTION_RESULT_ERROR)
            self.left_out[site] = LeftOut.of(reasons.BadResult(what="tensors"))
            return
        self.left_out.pop(site, None)
        self._own[site] = payload_sha256(tensors)

    def _take_report(self, results: RoundResults[EvaluationReport], site: str, result: Shareable) -> bool:
        """Returns whether FLARE may see the result."""
        if site in results.reports:
            return False
        if result.get_return_code() != ReturnCode.OK:
            results.fail(site, reason_of(result))
            return True
        results.arrived(site)
        try:
            model = FLModelUtils.from_shareable(result)
        except (TypeError, ValueError):
            return False  # it stays unreadable
        model.meta["client_name"] = site
        return results.add(site, model)
