from typing import Protocol

class _Names(Protocol):
    def Name(self, number: int) -> str: ...

Status: _Names
STATUS_SUCCESS: int
STATUS_FAILURE: int
