from collections.abc import Mapping
from typing import Any

def get_resource_manager_spec(job_meta: Mapping[str, Any], site_name: str) -> dict[str, Any]: ...
