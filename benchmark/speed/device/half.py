"""Chooses half of HAM10000's images, always the same ones, whole lesions, of every site and class."""

import csv
import hashlib
import io
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = Mapping[str, str]


def chosen(rows: Sequence[Row], share: float = 0.5) -> list[Row]:
    """The rows of a `share` of the images, in their order.

    The lesions of each site and class are drawn in the order of a digest of their names, until the share is reached.

    Args:
        rows: of the table, with ``lesion_id``, ``site`` and ``dx``.
        share: of each site's and class's images, at least.
    """
    lesions: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        lesions[row["lesion_id"]].append(row)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for lesion, own in lesions.items():
        strata[own[0]["site"], own[0]["dx"]].append(lesion)
    taken: set[str] = set()
    for members in strata.values():
        count, wanted = 0, share * sum(len(lesions[lesion]) for lesion in members)
        for lesion in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
            if count >= wanted:
                break
            taken.add(lesion)
            count += len(lesions[lesion])
    return [row for row in rows if row["lesion_id"] in taken]


def read_table(path: Path) -> list[Row]:
    """The rows of a table."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_half(images: Path, table: Path, to_images: Path, to_table: Path, share: float = 0.5) -> int:
    """Writes a part of a zip archive of images and of its table.

    Args:
        images: the archive.
        table: names the images in its column ``file``.
        to_images: the archive to write; the images' bytes stay as they are.
        to_table: the table to write.
        share: see `chosen`.

    Returns:
        The number of images.
    """
    rows = chosen(read_table(table), share)
    with zipfile.ZipFile(images) as source, zipfile.ZipFile(to_images, "w") as target:
        for row in rows:
            # Of one date, so that the same images make the same file.
            target.writestr(zipfile.ZipInfo(row["file"]), source.read(row["file"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    to_table.write_text(text.getvalue(), encoding="utf-8")
    return len(rows)
