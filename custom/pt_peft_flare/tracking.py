"""Hands scalars and images to FLARE's analytics receivers (TensorBoard, MLflow, …).

They are made from reports that passed the sites' egress filters, and fired at the server as if each site had sent them
as federation events: nothing but filtered results then leaves a site, and every stock receiver works.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsData, AnalyticsDataType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReservedKey
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.app_common.widgets.convert_to_fed_event import FED_EVENT_PREFIX

GLOBAL = "global"
"""Source of what is of the federation as a whole."""


def log_scalars(engine: ServerEngineSpec, source: str, step: int, values: Mapping[str, float | None]) -> None:
    """Hands scalars to the receivers.

    Args:
        engine: the server's.
        source: name of the site they belong to, or `GLOBAL`; becomes the run's name in TensorBoard.
        step: number of finished rounds.
        values: scalars by tag; those that are None are left out.
    """
    for tag, value in values.items():
        if value is not None:
            _fire(engine, source, AnalyticsData(tag, float(value), AnalyticsDataType.SCALAR, global_step=step))


def log_image(engine: ServerEngineSpec, source: str, step: int, tag: str, pixels: npt.NDArray[np.uint8]) -> None:
    """Hands an image, uint8 (height, width, 3), to the receivers; those that take none pass over it."""
    _fire(engine, source, AnalyticsData(tag, pixels, AnalyticsDataType.IMAGE, global_step=step))


def _fire(engine: ServerEngineSpec, source: str, data: AnalyticsData) -> None:
    shareable = data.to_dxo().to_shareable()
    shareable.set_peer_props({ReservedKey.IDENTITY_NAME: source})
    # As one that has come in: FLARE sends an outgoing event of federation scope to all sites.
    shareable.set_header(FedEventHeader.DIRECTION, "in")
    with engine.new_context() as fl_ctx:
        fl_ctx.set_prop(FLContextKey.EVENT_DATA, shareable, private=True, sticky=False)
        fl_ctx.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
        # Not a component's `fire_event`, which would make the event local and every scalar the server's own.
        engine.fire_event(FED_EVENT_PREFIX + ANALYTIC_EVENT_TYPE, fl_ctx)
