"""Writes a report's cells as CSV."""

import csv
import io
from collections.abc import Sequence

from benchmark.sweep.records import CellRecord, FailureRecord, metric_of

SCALARS = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "ece", "loss", "count")


def to_csv(cells: Sequence[CellRecord | FailureRecord]) -> str:
    """One row a cell; metrics are fractions of 1, on all sites' test images together. A failed cell's are empty."""
    buffer = io.StringIO()
    rows = [_row(cell) for cell in cells]
    columns = max((list(row) for row in rows), key=len)
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _row(cell: CellRecord | FailureRecord) -> dict[str, object]:
    failed = isinstance(cell, FailureRecord)
    return {
        "name": cell.name,
        "status": "failed" if failed else "finished",
        "reason": cell.reason if failed else None,
        **cell.axes.model_dump(),
        "engine": cell.engine,
        "select_by": cell.select_by,
        "seconds": cell.seconds.get("total"),
        "peak_memory_bytes": cell.peak_memory_bytes,
        "commit": cell.provenance.commit,
        "dirty": cell.provenance.dirty,
        **({} if failed else _found(cell)),
    }


def _found(cell: CellRecord) -> dict[str, object]:
    test, validation, verified = cell.final.test, cell.final.val, cell.verification
    sites = [one.balanced_accuracy for one in test.sites.values()]
    return {
        "rounds": len(cell.rounds),
        "exchanged_parameters": cell.exchanged_parameters,
        "wire_bytes": cell.wire_bytes,
        "bytes_in": cell.bytes_in,
        "bytes_out": cell.bytes_out,
        **{f"test_{name}": metric_of(test.pooled, name) for name in SCALARS},
        "worst_site_balanced_accuracy": min(sites),
        "site_spread_balanced_accuracy": max(sites) - min(sites),
        "validation": metric_of(validation.mean, cell.select_by) if validation else None,
        "verification_max_difference": verified.max_difference if verified else None,
    }
