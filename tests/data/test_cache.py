"""Images are decoded once; entries that another process left unfinished are never used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT, at_size
from pt_peft.data import cache, cache_space
from pt_peft.data.cache import cached_images
from pt_peft.data.items import Item
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site


class Counted:
    """Site images that count how often they are decoded."""

    def __init__(self, key="key", counts=(5, 2, 0), unreadable=()):
        self._key, self._counts, self._unreadable = (
            key,
            dict(zip(("train", "val", "test"), counts, strict=True)),
            unreadable,
        )
        self.decodings = 0

    def key(self):
        return self._key

    def items(self, split):
        return [Item(f"{split}/{index}", (index % 2,), split, f"{index}") for index in range(self._counts[split])]

    def decoded(self, split, decoding):
        self.decodings += 1
        size = decoding.image_size
        for index, item in enumerate(self.items(split)):
            broken = item.file in self._unreadable
            yield UserError(f"image '{item.file}' is broken.") if broken else np.full((3, size, size), index, np.uint8)


def cached_arrays(folder, images, size, **settings):
    return cached_images(Site(cache=str(folder), **settings), images, at_size(size))


def test_cold_then_warm(tmp_path):
    images = Counted()
    cold = cached_arrays(tmp_path, images, 16)
    warm = cached_arrays(tmp_path, images, 16)
    assert images.decodings == 2  # train and val: an empty split is not asked for
    for arrays in (cold, warm):
        train = arrays["train"]
        assert isinstance(train.images, np.memmap)
        assert not train.images.flags.writeable
        assert train.images.shape == (5, 3, 16, 16)
        assert train.images.dtype == np.uint8
        assert [item.labels for item in train.items] == [(0,), (1,), (0,), (1,), (0,)]
        assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        assert arrays["test"].images.shape == (0, 3, 16, 16)


def test_another_key_or_size_is_another_entry(tmp_path):
    for key, size in (("a", 16), ("b", 16), ("a", 32)):
        images = Counted(key)
        assert cached_arrays(tmp_path, images, size)["train"].images.shape[-1] == size
        assert images.decodings == 2


def entry(folder: Path) -> Path:
    (path,) = (path for path in folder.iterdir() if path.is_dir())
    return path


@pytest.mark.parametrize("damage", ["no description", "cut off", "images missing", "left over"])
def test_a_half_written_entry_is_made_anew(tmp_path, damage):
    cached_arrays(tmp_path, Counted(), 16)
    path = entry(tmp_path)
    if damage == "no description":
        (path / "cache.json").unlink()
    elif damage == "cut off":
        os.truncate(path / "train_images.npy", 1000)
    elif damage == "images missing":
        (path / "val_images.npy").unlink()
    else:
        path.rename(path.with_suffix(".partial"))
    images = Counted()
    assert len(cached_arrays(tmp_path, images, 16)["train"].images) == 5
    assert images.decodings == 2
    assert entry(tmp_path) == path


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(
        UserError, match=r"'train/3' is broken. It is image 1 that cannot be read; of 7 images, .* allows 0"
    ):
        cached_arrays(tmp_path, Counted(unreadable=["train/3"]), 16)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_description_says_what_was_cached(tmp_path):
    cached_arrays(tmp_path, Counted("what"), 16)
    description = json.loads((entry(tmp_path) / "cache.json").read_text())
    assert description["key"]["images"] == "what"
    assert description["unreadable"] == {"train": [], "val": [], "test": []}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"image cache .*file/cache: cannot be written \(.*'cache' in site.json"):
        cached_arrays(tmp_path / "file" / "cache", Counted(), 16)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        cached_arrays(tmp_path, Counted(), 16)


BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from pt_peft.data.cache import cached_images
from pt_peft.data.items import Item
from pt_peft.experiment.preprocessing import Decoding
from pt_peft.experiment.site import Site

class Slow:
    def key(self): return "slow"
    def items(self, split): return [Item(f"{i}", (0,), split, f"{i}") for i in range(3 if split == "train" else 0)]
    def decoded(self, split, decoding):
        print("decoding")
        size = decoding.image_size
        for index in range(3):
            time.sleep(0.3)
            yield np.full((3, size, size), index, np.uint8)

print(cached_images(Site(cache=sys.argv[1]), Slow(), Decoding.model_validate_json(sys.argv[2]))["train"].images.sum())
"""


def test_of_two_processes_one_builds_and_both_read(tmp_path):
    command = [sys.executable, "-c", BUILDER, str(tmp_path), at_size(16).model_dump_json()]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    outputs = [builder.communicate(timeout=60)[0].split() for builder in builders]
    assert sorted(outputs, key=len) == [["2304"], ["decoding", "2304"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_images.npy", b""),
        ("cache.json", b"[]"),
        ("cache.json", b'{"unreadable": null}'),
        ("cache.json", b'{"unreadable": {}}'),
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path, name, content):
    cached_arrays(tmp_path, Counted(), 16)
    (entry(tmp_path) / name).write_bytes(content)
    images = Counted()
    for _ in range(2):
        assert len(cached_arrays(tmp_path, images, 16)["train"].items) == 5
    assert images.decodings == 2


def test_an_unreadable_image_costs_a_warning_and_itself(tmp_path, caplog):
    images = Counted(counts=(50, 50, 0), unreadable=["train/3", "val/0"])
    for _ in range(2):
        opened = cached_arrays(tmp_path, images, 16, max_unreadable=0.02)
        assert [len(opened[split].items) for split in ("train", "val", "test")] == [49, 50 - 1, 0]
        assert opened["train"].images[:, 0, 0, 0].tolist() == [index for index in range(50) if index != 3]
        assert next(item.file for item in opened["val"].items) == "val/1"
    assert images.decodings == 2
    assert "image 'train/3' is broken. It is left out: of 100 images" in caplog.text
    assert "2 images that could not be read are left out" in caplog.text
    with pytest.raises(UserError, match=r"'val/0' is broken. It is image 2 .* \(0.01\) allows 1"):
        cached_arrays(tmp_path / "other", images, 16)


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_cache_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path):
    one = cache_space.pixel_bytes(7, 16)
    limit = 3.5 * one / 1e9
    for key in ("a", "b", "c"):
        cached_arrays(tmp_path, Counted(key), 16, cache_gb=limit)
        made = entry_of(tmp_path, key)
        assert made
        os.utime(made / "cache.json", (ord(key), ord(key)))
    again = Counted("a")
    kept = cached_arrays(tmp_path, again, 16, cache_gb=limit)["train"].images
    assert again.decodings == 0  # now "b" is the one used least recently
    cached_arrays(tmp_path, Counted("d"), 16, cache_gb=limit)
    kept_entries = {key: path for key in "abcd" if (path := entry_of(tmp_path, key))}
    assert "b" not in kept_entries
    assert {"a", "d"} <= kept_entries.keys()
    assert sum(map(sizes, kept_entries.values())) <= limit * 1e9 + 2000
    cached_arrays(tmp_path, Counted("e", counts=(20, 0, 0)), 16, cache_gb=limit)
    assert kept[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]  # evicted, but still mapped


def entry_of(folder: Path, key: str) -> Path | None:
    for description in folder.glob("*/cache.json"):
        if json.loads(description.read_text())["key"]["images"] == key:
            return description.parent
    return None


def test_images_beyond_the_limit_or_the_disk_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"need 0.00 GB, but 'cache_gb' in site.json is 1e-06; a greater value"):
        cached_arrays(tmp_path, Counted(), 16, cache_gb=1e-6)
    monkeypatch.setattr(cache_space.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"the disk has 0.00 GB free; set 'cache' in site.json"):
        cached_arrays(tmp_path, Counted(), 16)


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in ("dead.partial", "dead.removed"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train_images.npy").write_bytes(b"0" * 100)
    cached_arrays(tmp_path, Counted(), 16)
    assert not list(tmp_path.glob("dead.partial"))
    assert not list(tmp_path.glob("dead.removed"))


def test_other_code_is_another_entry(tmp_path, monkeypatch):
    cached_arrays(tmp_path, Counted(), 16)
    monkeypatch.setattr(cache, "pixel_code", lambda: "changed")
    images = Counted()
    cached_arrays(tmp_path, images, 16)
    assert images.decodings == 2


def test_an_entry_that_lacks_more_than_is_allowed_now_is_made_anew(tmp_path):
    images = Counted(counts=(10, 0, 0), unreadable=["train/3"])
    assert len(cached_arrays(tmp_path, images, 16, max_unreadable=0.1)["train"].items) == 9
    with pytest.raises(UserError, match="allows 0"):
        cached_arrays(tmp_path, images, 16)


def test_an_entry_of_another_shape_is_made_anew(tmp_path):
    cached_arrays(tmp_path, Counted(), 16)
    np.save(entry(tmp_path) / "train_images.npy", np.zeros((5, 3, 8, 8), np.float32))
    images = Counted()
    assert cached_arrays(tmp_path, images, 16)["train"].images.shape == (5, 3, 16, 16)
    assert images.decodings == 2


def test_what_others_are_preparing_is_reckoned_with(tmp_path):
    other = tmp_path / "other.partial"
    one = cache_space.pixel_bytes(7, 16)
    with cache.FileLock(tmp_path / "other.lock"):
        cache_space.make_room(other, one, limit_gb=1.5 * one / 1e9)
        with pytest.raises(UserError, match="and others that are being prepared"):
            cached_arrays(tmp_path, Counted(), 16, cache_gb=1.5 * one / 1e9)
    cached_arrays(tmp_path, Counted(), 16, cache_gb=1.5 * one / 1e9)  # its builder is gone
    assert not other.exists()
