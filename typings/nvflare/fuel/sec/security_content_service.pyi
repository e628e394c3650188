from enum import Enum

class LoadResult(Enum):
    OK = "ok"

class SecurityContentService:
    @classmethod
    def load_content(cls, file_under_verification: str) -> tuple[bytes, LoadResult]: ...
