"""What FLARE's events of an aggregation carry, as its own workflows fill it in.

`MetricsArtifactWriter`, which FLARE's recipes put into every job, writes ``metrics/round_metrics.jsonl`` and
``metrics/metrics_summary.json`` of it. Names and values are those of the curves: means over sites, each of which weighs
the same.
"""

from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants

from pt_peft.exchange.tensors import Tensors
from pt_peft_flare.curves import mean
from pt_peft_flare.round_file import RoundEntry, Summary
from pt_peft_flare.run_record import METRICS


def aggregation_result(entry: RoundEntry, tensors: Tensors, select_by: str) -> FLModel:
    """What goes with ``AFTER_AGGREGATION``.

    Args:
        entry: the round.
        tensors: the aggregate.
        select_by: the experiment's.

    Returns:
        The aggregate, with the training loss of the round and the validation of the model that it started from.
    """
    sites = [
        {"name": site, "metrics": _known(report["val"] or {}) | _loss(report["train_loss"]), "weight": 1}
        for site, report in entry["sites"].items()
    ]
    at_start = entry["val_at_start"]
    metrics = _known(at_start["mean"] if at_start else {})
    metrics |= _loss(mean(report["train_loss"] for report in entry["sites"].values()))
    info = {
        "metric_source": "client_reported_flmodel_metrics",  # FLARE's word
        "metric_split": "val",
        "aggregation": {"method": "weighted_average", "weight_formula": "1"},
        "key_metric": _key_metric(select_by),
        "sites": sites,
        # The results as they came are reports, of which FLARE would take the numbers that stand in no section.
        "use_contribution_sites": False,
    }
    number = entry["round"]
    return FLModel(
        params_type=ParamsType.FULL,
        params=tensors,
        metrics=metrics,
        current_round=number,
        meta={
            "nr_aggregated": len(sites),
            "current_round": number,
            AppConstants.METRICS_AGGREGATION_INFO: info,
        },
    )


def selection(finished_rounds: int, validation: Summary, select_by: str) -> dict[str, Any]:
    """What goes with ``GLOBAL_BEST_MODEL_AVAILABLE``.

    Args:
        finished_rounds: after how many rounds the aggregate was the best: the number of the round that started from it.
        validation: its validation.
        select_by: the experiment's.
    """
    return {
        "source": "PeftFedAvg",
        "best_round": finished_rounds,
        "best_metrics": _known(validation["mean"]),
        "key_metric": _key_metric(select_by),
    }


def _key_metric(select_by: str) -> dict[str, str]:
    return {"name": f"val/{select_by}", "mode": "max", "mode_source": "select_by"}


def _known(metrics: dict[str, Any]) -> dict[str, float]:
    """Those of `METRICS` that are there, by the curve's name."""
    return {f"val/{name}": metrics[name] for name in METRICS if metrics.get(name) is not None}


def _loss(value: float | None) -> dict[str, float]:
    return {} if value is None else {"train/loss": value}
