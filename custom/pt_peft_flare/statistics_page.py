"""The counts of the sites' images side by side, as one HTML page that needs no other file."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from pt_peft.data.items import SPLITS
from pt_peft.experiment.experiment import Experiment
from pt_peft.federation.image_statistics import EDGES, ImageReport, SplitStatistics, bounds, class_order

UNITS = {"width": " px", "height": " px", "brightness": "", "contrast": ""}
WIDTH, HEIGHT = 220, 64
"""Of a histogram, pixels."""
STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #0b7a72; }
@media (prefers-color-scheme: dark) { :root { --bar: #5ad1c6; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
.wide { margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: middle; }
td { font-variant-numeric: tabular-nums; min-width: 7rem; }
.bar { background: var(--bar); height: .3rem; }
svg { display: block; fill: var(--bar); }
svg text { fill: currentColor; font-size: 11px; }
"""


def to_html(experiment: Experiment, reports: Mapping[str, ImageReport], left_out: Mapping[str, str]) -> str:
    """The page.

    Args:
        experiment: the job's.
        reports: what the sites have counted, by site.
        left_out: why there is no report of the other sites.
    """
    title = f"Images of {experiment.name}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *_body(experiment, reports, left_out)])
    page = f'<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n'
    return f"<!doctype html>\n{page}"


def _body(experiment: Experiment, reports: Mapping[str, ImageReport], left_out: Mapping[str, str]) -> Iterator[str]:
    yield (
        "<p>Images that can be read, as each site counts them. A range such as 0 to 4 is what a count may be that the "
        "site does not tell: fewer images than the least that it counts are in the number of the next class or bin, or "
        "of the last one that has a number, which then is a range too. A split without images, or with fewer than the "
        "limits of the site ask for, has no number.</p>"
    )
    if left_out:
        yield "<h2>Left out</h2>\n<ul>"
        yield from (f"<li><b>{escape(site)}</b>: {escape(reason)}</li>" for site, reason in sorted(left_out.items()))
        yield "</ul>"
    if not reports:
        return
    found = {site: report.splits() for site, report in reports.items()}
    rows = [
        [
            escape(site),
            str(reports[site].least),
            *(str(splits[split].images) if split in splits else "" for split in SPLITS),
        ]
        for site, splits in found.items()
    ]
    yield "<h2>Images</h2>"
    yield from _table(
        ["site", "least that is counted", *SPLITS], [[f"<td>{cell}</td>" for cell in row] for row in rows]
    )
    for split in SPLITS:
        there = {site: splits[split] for site, splits in found.items() if split in splits}
        if there:
            least = {site: reports[site].least for site in there}
            yield f"<h2>{split}</h2>"
            names = [escape(site) for site in there]
            yield from _table(["class", *names], _class_rows(experiment, there, least))
            yield from _table(["", *names], [_histogram_row(name, there, least) for name in EDGES])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields a table; rows are cells with their tags."""
    yield '<div class="wide"><table>'
    yield f"<tr>{''.join(f'<th>{one}</th>' for one in headings)}</tr>"
    yield from (f"<tr>{''.join(row)}</tr>" for row in rows)
    yield "</table></div>"


def _class_rows(
    experiment: Experiment, splits: Mapping[str, SplitStatistics], least: Mapping[str, int]
) -> list[list[str]]:
    """A row for each class."""
    order = class_order(experiment)
    rows = [[f"<th>{escape(experiment.data.classes[place])}</th>"] for place in order]
    for site, one in splits.items():
        counts = [one.classes[place] for place in order]
        if experiment.data.task == "multilabel":
            found = [bounds([count, one.images - count], least[site])[0] for count in counts]
        else:
            found = bounds(counts, least[site])
        for row, count, between in zip(rows, counts, found, strict=True):
            row.append(f'<td>{_shown(between)}<div class="bar" style="width: {count / one.images:.1%}"></div></td>')
    return rows


def _shown(between: tuple[int, int]) -> str:
    """A count, or the fewest and the most that it may be."""
    fewest, most = between
    return f"{most}" if fewest == most else f"{fewest} to {most}"


def _histogram_row(name: str, splits: Mapping[str, SplitStatistics], least: Mapping[str, int]) -> list[str]:
    """The histograms of all sites on the same axes, which end with the first bin in which no site counts images."""
    tables: dict[str, list[int]] = {site: getattr(one, name) for site, one in splits.items()}
    used = [place for counts in tables.values() for place, count in enumerate(counts) if count]
    drawn = range(max(min(used) - 1, 0), min(max(used) + 2, len(EDGES[name]) - 1))
    highest = max(max(counts) / splits[site].images for site, counts in tables.items())
    cells = [f"<td>{_svg(name, counts, least[site], drawn, highest)}</td>" for site, counts in tables.items()]
    return [f"<th>{name}</th>", *cells]


def _svg(name: str, counts: Sequence[int], least: int, drawn: range, highest: float) -> str:
    """One histogram: heights are shares of the images, of which `highest` is as high as it may be."""
    edges, unit, images = EDGES[name], UNITS[name], sum(counts)
    step, between = WIDTH / len(drawn), bounds(counts, least)
    parts: list[str] = []
    for number, place in enumerate(drawn):
        height = HEIGHT * counts[place] / images / highest
        said = f"{edges[place]:g} to {edges[place + 1]:g}{unit}: {_shown(between[place])} of {images}"
        parts.append(
            f'<rect x="{number * step:.1f}" y="{HEIGHT - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}">'
            f"<title>{said}</title></rect>"
        )
    parts.append(f'<text x="0" y="{HEIGHT + 13}">{edges[drawn.start]:g}{unit}</text>')
    parts.append(f'<text x="{WIDTH}" y="{HEIGHT + 13}" text-anchor="end">{edges[drawn.stop]:g}{unit}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT + 18}"'
    return f'<svg {size} role="img" aria-label="{name}">{"".join(parts)}</svg>'
