from enum import StrEnum
from typing import Any

class ParamsType(StrEnum):
    FULL = "FULL"

class FLModel:
    params: Any  # whatever a site has sent: to be checked
    metrics: Any
    meta: dict[str, Any]
    current_round: int | None
    def __init__(
        self,
        params_type: ParamsType | None = None,
        params: object = None,
        metrics: dict[str, Any] | None = None,
        start_round: int | None = 0,
        current_round: int | None = None,
        total_rounds: int | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None: ...
