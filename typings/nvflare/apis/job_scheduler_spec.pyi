from typing import Any

class DispatchInfo:
    def __init__(self, app_name: str, resource_requirements: dict[str, Any], token: str | None) -> None: ...
