from typing import Any

class Client:
    def __init__(self, name: str, token: str) -> None: ...
    name: str
    token: str
    def to_dict(self) -> dict[str, Any]: ...
