from typing import Any

def get_global_stats(
    global_metrics: dict[str, Any],
    client_metrics: dict[str, dict[str, Any]],
    metric_task: str,
    statistic_configs: dict[str, dict[str, Any]],
    precision: int = 4,
) -> dict[str, Any]: ...
