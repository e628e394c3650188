from enum import StrEnum
from typing import Any

from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.shareable import Shareable

class DataKind(StrEnum):
    WEIGHTS = "WEIGHTS"
    WEIGHT_DIFF = "WEIGHT_DIFF"
    METRICS = "METRICS"

class MetaKey(FLMetaKey): ...

class DXO:
    data_kind: str
    data: Any  # whatever a site or the server has sent: to be checked
    meta: dict[str, Any]
    def __init__(self, data_kind: str, data: object, meta: dict[str, Any] | None = None) -> None: ...
    def get_meta_prop(self, key: str, default: object = None) -> Any: ...
    def to_shareable(self) -> Shareable: ...

def from_shareable(s: Shareable) -> DXO: ...
