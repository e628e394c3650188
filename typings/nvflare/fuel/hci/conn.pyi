from typing import Any

class Buffer:
    meta: dict[str, Any]

class Connection:
    buffer: Buffer
    def get_prop(self, key: str, default: object = None) -> Any: ...
    def append_string(self, data: str, meta: dict[str, Any] | None = None) -> None: ...
    def append_error(self, data: str, meta: dict[str, Any] | None = None) -> None: ...
