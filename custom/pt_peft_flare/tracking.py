"""Scalars for FLARE's analytics receivers (TensorBoard, MLflow, …), from reports that passed the sites' egress filters.

They are fired at the server as if each site had sent them as federation events: nothing but filtered results then
leaves a site, and every stock receiver works.
"""

from collections.abc import Mapping

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsData, AnalyticsDataType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReservedKey
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.app_common.widgets.convert_to_fed_event import FED_EVENT_PREFIX

from pt_peft.experiment.sections import Data
from pt_peft.federation.reports import SplitMetrics

SCALARS = (
    "loss",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "macro_f1",
    "ece",
    "quadratic_kappa",
    "mean_absolute_error",
)
"""Fields of `SplitMetrics`. The last two are None unless ``data.task`` is ``ordinal``."""


def split_scalars(split: str, metrics: SplitMetrics | None, data: Data) -> dict[str, float | None]:
    """``{"val/loss": 0.4, …}``, with each label's AUROC for ``multilabel``; empty for a split without images."""
    if metrics is None:
        return {}
    values: dict[str, float | None] = {f"{split}/{name}": getattr(metrics, name) for name in SCALARS}
    if data.task == "multilabel":
        for label, area in zip(data.classes, metrics.class_auroc, strict=True):
            values[f"{split}/auroc/{label}"] = area
    return values


def log_scalars(engine: ServerEngineSpec, source: str, step: int, values: Mapping[str, float | None]) -> None:
    """Hands scalars to the receivers.

    Args:
        engine: the server's.
        source: name of the site they belong to; becomes the run's name in TensorBoard.
        step: number of finished rounds.
        values: scalars by tag; those that are None are left out.
    """
    for tag, value in values.items():
        if value is None:
            continue
        data = AnalyticsData(key=tag, value=float(value), data_type=AnalyticsDataType.SCALAR, global_step=step)
        shareable = data.to_dxo().to_shareable()
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: source})
        # As one that has come in: FLARE sends an outgoing event of federation scope to all sites.
        shareable.set_header(FedEventHeader.DIRECTION, "in")
        with engine.new_context() as fl_ctx:
            fl_ctx.set_prop(FLContextKey.EVENT_DATA, shareable, private=True, sticky=False)
            fl_ctx.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
            # Not a component's `fire_event`, which would make the event local and every scalar the server's own.
            engine.fire_event(FED_EVENT_PREFIX + ANALYTIC_EVENT_TYPE, fl_ctx)
