"""bfloat16 against float32: what the accuracy of cells says that differ in nothing else. Imports no torch."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def precision_pairs(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares bfloat16 with float32 by kind and method, over the folds that have both.

    Returns:
        For each ``kind`` and ``method`` the number of ``folds``; ``points``, the mean of bfloat16's balanced accuracy
        minus float32's in points of a hundred; ``standard_error`` of that mean, None of one fold; and ``evaluated``,
        the mean of the same where the same adapters are evaluated in both.
    """
    cells_done = [one for one in records if one["section"] == "accuracy" and one["status"] == "done" and "kind" in one]
    found: list[dict[str, Any]] = []
    for kind, method in dict.fromkeys((one["kind"], one["method"]) for one in cells_done):
        of_kind = [one for one in cells_done if (one["kind"], one["method"]) == (kind, method)]
        by_fold: dict[int, dict[str, float]] = {}
        for one in of_kind:
            by_fold.setdefault(one["fold"], {})[one["precision"]] = one["balanced_accuracy"]
        points = [100 * (one["bfloat16"] - one["float32"]) for one in by_fold.values() if len(one) == 2]
        evaluated = [_evaluated(one) for one in of_kind]
        error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else None
        found.append(
            {
                "kind": kind,
                "method": method,
                "folds": len(points),
                "points": statistics.mean(points) if points else None,
                "standard_error": error,
                "evaluated": statistics.mean(evaluated),
            }
        )
    return found


def _evaluated(record: Mapping[str, Any]) -> float:
    there = record["in_the_other_precision"]["balanced_accuracy"]
    points = 100 * (record["balanced_accuracy"] - there)
    return points if record["precision"] == "bfloat16" else -points
