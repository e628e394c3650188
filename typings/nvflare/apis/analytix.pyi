from enum import Enum

from nvflare.apis.dxo import DXO

ANALYTIC_EVENT_TYPE: str

class TrackConst:
    EXPERIMENT_NAME: str
    EXPERIMENT_TAGS: str

class AnalyticsDataType(Enum):
    SCALAR = "SCALAR"
    IMAGE = "IMAGE"

class AnalyticsData:
    tag: str
    def __init__(
        self, key: str, value: object, data_type: AnalyticsDataType, global_step: int | None = None
    ) -> None: ...
    def to_dxo(self) -> DXO: ...
