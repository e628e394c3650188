"""Files of several frames or pages: which of them are images.

``data.frames`` of `site.json` says so: null refuses such files, a number takes one frame of each file, and ``all``
makes each frame an image, which is named ``<file>#<frame>``. Frames and pages are counted from 0.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pt_peft.data.archive import OpenArchive, open_archive
from pt_peft.data.items import Item
from pt_peft.experiment.own_images import Frames

_logger = logging.getLogger(__name__)


def each_frame(items: Sequence[Item], images: Path) -> list[Item]:
    """The items of the frames of each item's file. Reads the header of every file.

    The frames of a file are one group, or belong to the file's. Where the file is a group of its own, the group is
    DICOM's patient ID.

    Args:
        items: the images of a source, a file each.
        images: their folder or zip archive.
    """
    with open_archive(images) as open_image:
        frames = [frame for item in items for frame in _frames_of(item, open_image)]
    groups = {frame.group for frame in frames}
    if len(items) > 1 and len(groups) == 1:
        _logger.warning("%s: all %d files are of one group (%s), which stays in one split", images, len(items), *groups)
    return frames


def _frames_of(item: Item, open_image: OpenArchive) -> Iterator[Item]:
    names, patient = file_frames(item.file, open_image)
    group = f"DICOM patient {patient}" if patient and item.group == item.file else item.group
    for name in names:
        yield replace(item, file=name, group=group)


def file_frames(file: str, open_image: OpenArchive) -> tuple[list[str], str | None]:
    """The names of the images in a file of which each frame is one, and DICOM's patient ID if it has one.

    A file that cannot be read has one frame: it is reported when that is decoded.
    """
    from pt_peft.data.stored import described

    count, patient = 1, None
    with suppress(Exception), open_image(file) as stream:  # decoders raise anything for a damaged file
        count, patient = described(stream)
    return [f"{file}#{frame}" for frame in range(count)], patient


def located(name: str, frames: Frames) -> tuple[str, int | None]:
    """The file of an image and its frame in it; None for the only frame.

    Args:
        name: the image's name.
        frames: ``data.frames``.
    """
    if frames != "all":
        return name, frames
    file, _, frame = name.rpartition("#")
    return file, int(frame)


def chosen(frame: int | None, count: int) -> int:
    """The frame to read of a file that has `count`. Raises ValueError if nobody says which, or there are too few."""
    if frame is None and count != 1:
        raise ValueError(
            f"has {count} frames or pages; data.frames in site.json (--frames of predict) says which one is the image, "
            "or 'all' if each of them is"
        )
    if frame is not None and frame >= count:
        raise ValueError(f"has {count} frame(s) or page(s), counted from 0; there is no {frame}, as data.frames says")
    return frame or 0
