from typing import Any

class Config:
    def to_dict(self) -> dict[str, Any]: ...

class ConfigFactory:
    @staticmethod
    def load_config(file_path: str, search_dirs: list[str] | None = None) -> Config | None: ...
