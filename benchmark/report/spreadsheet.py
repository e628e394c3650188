"""A report's cells as CSV."""

import csv
import io

from benchmark.sweep.result_files import Cell

SCALARS = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "ece", "loss", "count")


def to_csv(cells: list[Cell]) -> str:
    """One row a cell; metrics are fractions of 1, on all sites' test images together."""
    buffer = io.StringIO()
    rows = [_row(cell) for cell in cells]
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _row(cell: Cell) -> dict[str, object]:
    test = cell.final.test if cell.final else None
    sites = [one.balanced_accuracy for one in test.sites.values()] if test else []
    validation = cell.final.val if cell.final else None
    return {
        "name": cell.name,
        "status": cell.status,
        "reason": cell.reason,
        **cell.axes.model_dump(),
        "engine": cell.engine,
        "rounds": len(cell.rounds) if cell.rounds is not None else None,
        "exchanged_parameters": cell.exchanged_parameters,
        "wire_bytes": cell.wire_bytes,
        "bytes_in": cell.bytes_in,
        "bytes_out": cell.bytes_out,
        **{f"test_{name}": test.pooled.value(name) if test else None for name in SCALARS},
        "worst_site_balanced_accuracy": min(sites, default=None),
        "site_spread_balanced_accuracy": max(sites) - min(sites) if sites else None,
        "select_by": cell.select_by,
        "validation": validation.mean.value(cell.select_by) if validation else None,
        "seconds": (cell.seconds or {}).get("total"),
        "peak_memory_bytes": cell.peak_memory_bytes,
        "verification_max_difference": cell.verification.max_difference if cell.verification else None,
        "commit": cell.provenance.get("commit"),
        "dirty": cell.provenance.get("dirty"),
    }
