"""The summary of the results: tables, with what was wanted beside what was found. Imports no torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmark.speed.device.precision import precision_pairs

TRAINING, EVALUATION, MEMORY, POINTS = 0.95, 1.0, 1.1, 0.5
"""Wanted: images a second of ours over the bare loop's in training and in evaluation at least; memory in training over
the bare loop's at most; points of balanced accuracy that bfloat16 loses at most."""
Records = Sequence[dict[str, Any]]
_GB = 1e9
_NONE = "\N{EN DASH}"


def summary(records: Records) -> str:
    """Writes the summary as Markdown.

    Args:
        records: all results so far, see `benchmark.speed.device.results`.
    """
    done = [one for one in records if one["status"] == "done"]
    parts = [_machine(done), _targets(done), _speed(done, "speed"), _speed(done, "levers"), _contract(records)]
    parts += [_sites(done), _accuracy(done), _missing(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(done: Records) -> str:
    for one in _of(done, "machine", "versions"):
        gpu = one["gpu"]
        if gpu:
            where = f"{gpu['name']}, {gpu['memory_gib']} GiB, driver {gpu['driver']}, CUDA {gpu['cuda']}"
        else:
            where = f"no GPU: {one['machine']['cpu']}, {one['threads']} threads. **These are a CPU's figures.**"
        versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        dirty = ", changed" if one["dirty"] else ""
        return f"# Speed on a device\n\n{where}\n\nCommit {one['commit'][:12]}{dirty}, {one['time']}. {versions}."
    return "# Speed on a device"


def _targets(done: Records) -> str:
    rows: list[list[object]] = []
    speed = _of(done, "speed", "train")
    train = [one["train"]["ours_over_bare"] for one in speed]
    evaluate = [one["evaluate"]["ours_over_bare"] for one in speed]
    memory = [ratio for one in speed if (ratio := one["train"]["memory_ours_over_bare"]) is not None]
    for name, values, wanted, least in (
        ("training: images a second over the bare loop's", train, TRAINING, True),
        ("evaluation: images a second over the bare loop's", evaluate, EVALUATION, True),
        ("training: memory over the bare loop's", memory, MEMORY, False),
    ):
        met = [value >= wanted if least else value <= wanted for value in values]
        text = f"{min(values):.2f} to {max(values):.2f}" if values else "not measured"
        rows.append([name, f"{'≥' if least else '≤'} {wanted}", text, f"{sum(met)} of {len(met)}" if met else _NONE])
    for one in precision_pairs(done):
        if one["points"] is None:
            continue
        error = one["standard_error"]
        found = f"{one['points']:+.2f}" + (f" ± {error:.2f}" if error is not None else "") + f" ({one['folds']} folds)"
        name = f"{one['kind']} {one['method']}: bfloat16's points of balanced accuracy over float32's"
        met = "met" if one["points"] >= -POINTS else "not met"
        unsure = error is None or abs(one["points"] + POINTS) < 2 * error
        rows.append([name, f"≥ -{POINTS}", found, f"{met}; too few folds to be sure" if unsure else met])
        found = f"{one['evaluated']:+.2f}"
        met = "met" if one["evaluated"] >= -POINTS else "not met"
        rows.append([f"{one['kind']} {one['method']}: the same adapter evaluated in both", f"≥ -{POINTS}", found, met])
    if equal := _of(done, "contract", "equal"):
        most = max(one["relative"] for one in equal)
        met = sum(one["equal"] for one in equal)
        rows.append(
            ["adapter in float32, distance from the CPU's", "≤ 1e-4", f"{most:.1e} at most", f"{met} of {len(equal)}"]
        )
    return "## Wanted and found\n\n" + _table(["what", "wanted", "found", "met"], rows)


def _speed(done: Records, section: str) -> str:
    rows: list[list[object]] = []
    for one in _of(done, section, "train"):
        train, evaluate = one["train"], one["evaluate"]
        rows.append(
            [
                *([one["lever"]] if section == "levers" else []),
                one["model"],
                one["method"],
                one["precision"],
                one["batch_size"],
                *(f"{train['images_per_s'][name]:.0f}" for name in ("bare", "ours")),
                f"{train['ours_over_bare']:.2f}",
                *(f"{evaluate['images_per_s'][name]:.0f}" for name in ("bare", "ours")),
                f"{evaluate['ours_over_bare']:.2f}",
                *(_gb(train["memory"][name]["allocated"]) for name in ("bare", "ours")),
                _number(train["memory_ours_over_bare"]),
            ]
        )
    head = ["model", "method", "precision", "batch", "training: bare, images/s", "ours", "ratio"]
    head += ["evaluation: bare, images/s", "ours", "ratio", "memory: bare, GB", "ours", "ratio"]
    if section == "levers":
        head = ["lever", *head]
    title = {"speed": "Training and evaluation", "levers": "Levers, each alone"}[section]
    return f"## {title}\n\n{_table(head, rows)}" if rows else ""


def _contract(records: Records) -> str:
    parts: list[str] = []
    for one in _of(records, "contract", "tests"):
        counts = ", ".join(f"{count} {name}" for name, count in one["tests"].items()) or "none ended"
        parts.append(f"`{one['step']}`: {counts}; exit code {one['exit_code']}.")
    rows = [
        [one["step"], f"{one['relative']:.1e}", f"{one['relative_change']:.1e}", one["worst"],
         f"{one['worst_relative']:.1e}", f"{one['logits_relative']:.1e}",
         "the same bits" if one["again"] == 0 else f"{one['again']:.1e}"]
        for one in _of(records, "contract", "equal")
    ]  # fmt: skip
    head = [
        "method",
        "adapter",
        "… of what training changed",
        "worst tensor",
        "its distance",
        "logits",
        "twice on the device",
    ]
    if rows:
        parts.append("Distance of the device's round from the CPU's, in float32, relative:\n\n" + _table(head, rows))
    return "\n\n".join(["## Contract", *parts]) if parts else ""


def _sites(done: Records) -> str:
    parts: list[str] = []
    for one in _of(done, "sites", "sites"):
        rows = [
            [row["sites"], f"{row['images_per_s']:.0f}", f"{row['images_per_s'] / one['sites'][0]['images_per_s']:.2f}",
             _gb(row["memory_bytes"])]
            for row in one["sites"]
        ]  # fmt: skip
        more = one["bytes_per_site"]
        text = f"{one['step']}; a further site takes {_gb(more)} GB" if more is not None else one["step"]
        parts.append(f"{text}:\n\n" + _table(["sites", "images/s of all", "over one site", "memory, GB"], rows))
    return "\n\n".join(["## Sites on one device", *parts]) if parts else ""


def _accuracy(done: Records) -> str:
    rows = [
        [one["kind"], one["method"], one["precision"], one["fold"], one["rounds"], f"{one['balanced_accuracy']:.3f}",
         f"{one['in_the_other_precision']['balanced_accuracy']:.3f}",
         f"{one['in_the_other_precision']['same_answers']:.3f}", f"{one['training_s']:.1f}"]
        for one in _of(done, "accuracy", "kind")
    ]  # fmt: skip
    head = ["trained", "method", "precision", "fold", "rounds", "balanced accuracy", "evaluated in the other precision"]
    head += ["same answers", "training, s"]
    return f"## HAM10000, half of it, at 224 pixels\n\n{_table(head, rows)}" if rows else ""


def _missing(records: Records) -> str:
    last = {(one["section"], one["step"]): one for one in records}
    rows = [[*key, one["status"], one["why"]] for key, one in last.items() if one["status"] != "done"]
    counts = Counter(one["status"] for one in last.values())
    title = ", ".join(f"{count} {status}" for status, count in counts.items())
    return (
        f"## What was not measured\n\n{title}.\n\n{_table(['section', 'step', 'status', 'why'], rows)}" if rows else ""
    )


def _of(records: Records, section: str, field: str) -> list[dict[str, Any]]:
    """The records of a section that have a field."""
    return [one for one in records if one["section"] == section and field in one]


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _gb(value: float | None) -> str:
    return _NONE if value is None else f"{value / _GB:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [
        list(head),
        ["---"] * len(head),
        *([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
