"""``pt-peft partition``."""

import json

from pt_peft.__main__ import main

DIRICHLET = 'partition={"kind": "dirichlet", "alpha": 0.2, "min_images": 20}'


def test_counts_of_the_demo(capsys):
    assert main(["partition", "lora_vpt", "--sites", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["site-1", "site-2", "site-3"]
    assert all(
        set(splits["train"]["classes"].values()) == {96} and splits["test"]["images"] == 256
        for splits in found.values()
    )


def test_the_picture_says_what_the_table_says(shared, tmp_path, capsys):
    arguments = [
        "partition",
        "ham10000",
        "--set",
        "federation.sites=[]",
        "--set",
        "federation.min_sites=2",
        "--set",
        DIRICHLET,
    ]
    assert main([*arguments, "--sites", "5", "--out", str(tmp_path / "bars.svg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["all", "230", "363", "767", "81", "778", "4667", "98", "6984", "1019", "2012"]
    picture = (tmp_path / "bars.svg").read_text()
    assert all(f">{text}</text>" in picture for text in ("site-1", "site-5", "akiec", "vasc", "training images"))
    assert "dirichlet, alpha 0.2" in picture
    assert picture.count("<path") > 35, "a bar for each site and class"


def test_mistakes(shared, tmp_path, capsys):
    def refusal(*arguments):
        assert main(["partition", *arguments]) == 1
        return capsys.readouterr().err

    assert "--sites: the experiment names no sites" in refusal("lora_vpt")
    assert "is neither a file, nor 'ham10000', nor 'ridge_probe', nor 'medmnist:<flag>', nor a method" in refusal(
        "lorra"
    )
    assert "'bars.jpg' ends in '.jpg'; .svg, .png or .pdf" in refusal("lora_vpt", "--sites", "2", "--out", "bars.jpg")
    assert "is not a folder" in refusal("lora_vpt", "--sites", "2", "--out", str(tmp_path / "no" / "bars.svg"))
    shards = ("--set", "federation.sites=[]", "--set", "partition.kind=shards", "--sites", "3")
    assert "partition.classes_per_site is 2, but 3 site(s) and 7 classes" in refusal("ham10000", *shards)
