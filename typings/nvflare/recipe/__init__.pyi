from typing import Any

from nvflare.apis.job_def import JobMetaKey
from nvflare.recipe.spec import ExecEnv, Recipe, Run

class SimEnv(ExecEnv):
    num_clients: int
    clients: list[str] | None
    workspace_root: str
    def __init__(
        self,
        *,
        num_clients: int = 0,
        clients: list[str] | None = None,
        num_threads: int | None = None,
        gpu_config: str | None = None,
        workspace_root: str = ...,
    ) -> None: ...

class PocEnv(ExecEnv):
    def __init__(self, *, num_clients: int | None = 2, clients: list[str] | None = None) -> None: ...

class ProdEnv(ExecEnv):
    def __init__(self, startup_kit_location: str, login_timeout: float = 5.0, username: str = ...) -> None: ...

def add_experiment_tracking(
    recipe: Recipe,
    tracking_type: str,
    tracking_config: dict[str, Any] | None = None,
    client_side: bool = False,
    server_side: bool = True,
) -> None: ...
def add_cross_site_evaluation(recipe: Recipe) -> None: ...
def set_per_site_config(recipe: Recipe, config: dict[str, dict[str, Any]]) -> None: ...
def set_recipe_meta(recipe: Recipe, key: JobMetaKey, value: Any) -> None: ...

__all__ = [
    "PocEnv",
    "ProdEnv",
    "Run",
    "SimEnv",
    "add_cross_site_evaluation",
    "add_experiment_tracking",
    "set_per_site_config",
    "set_recipe_meta",
]
