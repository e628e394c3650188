"""What the files of a folder or archive are, and how much of an archive is read."""

import os
import zipfile

import pytest

from pt_peft.data import archive
from pt_peft.data.archive import open_archive, stamp


def test_files_that_differ_in_nothing_but_their_content_have_stamps_of_their_own(tmp_path):
    """As two sites' that were unpacked from archives whose times are all alike, and have one cache."""
    sites = [tmp_path / "a", tmp_path / "b"]
    for site in sites:
        site.mkdir()
        (site / "1.bmp").write_bytes(site.name.encode() * 100)
        os.utime(site / "1.bmp", (0, 0))
        while stamp(site, ["1.bmp"])[0][2] >= os.stat(_later(tmp_path)).st_ctime_ns:
            pass  # a clock that ticks every few milliseconds
    first, second = (stamp(site, ["1.bmp"]) for site in sites)
    assert [one[:2] for one in first] == [one[:2] for one in second] == [(100, 0)]
    assert first != second
    before = stamp(sites[0], ["1.bmp"])
    (sites[0] / "1.bmp").write_bytes(b"c" * 100)
    os.utime(sites[0] / "1.bmp", (0, 0))
    assert stamp(sites[0], ["1.bmp"]) != before
    sites[0].rename(tmp_path / "moved")
    assert stamp(tmp_path / "moved", ["1.bmp", "2.bmp"]) == [*stamp(tmp_path / "moved", ["1.bmp"]), (0, 0, 0)]


def _later(folder):
    path = folder / "clock"
    path.write_bytes(b"")
    return path


def test_a_member_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST_MEMBER", 10**6)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", bytes(3 * 10**6))
        file.writestr("small.png", b"content")
    with open_archive(tmp_path / "a.zip") as open_image:
        with pytest.raises(OSError, match=r"has 0.0 GB when it is unpacked; at most 0.001 GB are read"):
            open_image("bomb.png")
        assert open_image("small.png").read() == b"content"
