"""Images are decoded once; what another process left half-done is never used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pt_peft.data.cache import cached_arrays
from pt_peft.errors import UserError

ROOT = Path(__file__).parents[2]


class Counted:
    """Site images that count how often they are decoded."""

    def __init__(self, key="key", counts=(5, 2, 0), fails=False):
        self._key, self._counts, self._fails = key, counts, fails
        self.decodings = 0

    def key(self):
        return self._key

    def counts(self):
        return dict(zip(("train", "val", "test"), self._counts, strict=True))

    def decoded(self, split, size):
        self.decodings += 1
        for index in range(self.counts()[split]):
            if self._fails:
                raise UserError("image '3.png' cannot be decoded")
            yield np.full((3, size, size), index, np.uint8), index % 2


def test_cold_then_warm(tmp_path):
    images = Counted()
    cold = cached_arrays(tmp_path, images, 16)
    warm = cached_arrays(tmp_path, images, 16)
    assert images.decodings == 2  # train and val: an empty split is not asked for
    for arrays in (cold, warm):
        train = arrays["train"]
        assert isinstance(train.images, np.memmap) and not train.images.flags.writeable
        assert train.images.shape == (5, 3, 16, 16) and train.images.dtype == np.uint8
        assert train.labels.dtype == np.int64 and train.labels.tolist() == [0, 1, 0, 1, 0]
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
    with pytest.raises(UserError, match="3.png"):
        cached_arrays(tmp_path, Counted(fails=True), 16)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_description_says_what_was_cached(tmp_path):
    cached_arrays(tmp_path, Counted("what"), 16)
    description = json.loads((entry(tmp_path) / "cache.json").read_text())
    assert description["key"]["images"] == "what" and description["counts"] == {"train": 5, "val": 2, "test": 0}


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
from pt_peft.data.cache import cached_arrays

class Slow:
    def key(self): return "slow"
    def counts(self): return {"train": 3, "val": 0, "test": 0}
    def decoded(self, split, size):
        print("decoding")
        for index in range(3):
            time.sleep(0.3)
            yield np.full((3, size, size), index, np.uint8), index

print(cached_arrays(Path(sys.argv[1]), Slow(), 16)["train"].images.sum())
"""


def test_of_two_processes_one_builds_and_both_read(tmp_path):
    command = [sys.executable, "-c", BUILDER, str(tmp_path)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    outputs = [builder.communicate(timeout=60)[0].split() for builder in builders]
    assert sorted(outputs, key=len) == [["2304"], ["decoding", "2304"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_images.npy", b""),
        ("train_labels.npy", b""),
        ("cache.json", b"[]"),
        ("cache.json", b'{"counts": null}'),
        ("cache.json", b'{"counts": {}}'),
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path, name, content):
    cached_arrays(tmp_path, Counted(), 16)
    (entry(tmp_path) / name).write_bytes(content)
    images = Counted()
    for _ in range(2):
        assert len(cached_arrays(tmp_path, images, 16)["train"].labels) == 5
    assert images.decodings == 2
