"""Writes an audit as Markdown."""

from benchmark.report.blocks import NONE, Report, Section, Table, Value, count, text
from benchmark.report.markdown import to_markdown

_EXPLANATION = (
    "PSNR (dB) and SSIM to the nearest training image. Of others: the best of as many images of the same sites "
    "that were not trained on, mean and 95 % of draws. Swapped: the same attack on a round with other images. p: "
    "probability of such a result by chance, over all attacks on the experiment."
)


def table(result: dict) -> str:
    """The verdicts and the table of `result`, see `benchmark.reconstruction.audit.audit`."""
    audits = result["audits"]
    header = [
        "experiment",
        "view",
        "attack",
        "evidence",
        "images",
        "PSNR",
        "of others",
        "swapped",
        "SSIM",
        "of others",
        "p",
    ]
    rows = [[text(audit["name"]), *_row(found)] for audit in audits for found in audit["findings"]]
    blocks = [*(audit["verdict"] for audit in audits), _EXPLANATION, Table("Attacks", header, rows)]
    return to_markdown(Report("Reconstruction", [], [Section("Can images be rebuilt?", blocks)]))


def _row(found: dict) -> list[Value]:
    swapped = found["swapped"]
    return [
        *(text(found[name]) for name in ("view", "attack", "evidence")),
        count(found["members"]),
        Value(f"{found['psnr']:.1f}", found["psnr"]),
        _chance(found["chance"]["psnr"], ".1f"),
        Value(NONE, None) if swapped is None else Value(f"{swapped['psnr']:.1f}", swapped["psnr"]),
        Value(f"{found['ssim']:.2f}", found["ssim"]),
        _chance(found["chance"]["ssim"], ".2f"),
        Value(f"{found['p']:.2g}", found["p"]),
    ]


def _chance(fields: dict, form: str) -> Value:
    mean, low, high = (format(fields[name], form) for name in ("mean", "low", "high"))
    return Value(f"{mean} ({low} to {high})", fields["mean"])
