"""Data sets in their published layouts."""

from pathlib import Path

import pytest
from PIL import Image

from helpers import at_size
from pt_peft.data.published import read_published
from pt_peft.data.sources import site_images
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data
from pt_peft.experiment.site import Site

HAM = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(folder / f"{name}.jpg")


def test_ham10000(tmp_path, make_experiment):
    images(tmp_path, "HAM10000_images_part_1/ISIC_1", "HAM10000_images_part_1/ISIC_2", "HAM10000_images_part_2/ISIC_3")
    (tmp_path / "HAM10000_metadata").write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
        "HAM_1,ISIC_1,bkl,histo,80.0,male,scalp,vidir_modern\n"
        "HAM_1,ISIC_2,bkl,histo,80.0,male,scalp,vidir_modern\n"
        "HAM_2,ISIC_3,nv,histo,,female,ear,rosendahl\n"
    )
    items = read_published(tmp_path, Data(source="site", classes=HAM), SiteData(source="ham10000"))
    assert [(item.file, item.labels, item.split, item.group, item.site) for item in items] == [
        ("HAM10000_images_part_1/ISIC_1.jpg", (2,), None, "HAM_1", "vidir_modern"),
        ("HAM10000_images_part_1/ISIC_2.jpg", (2,), None, "HAM_1", "vidir_modern"),
        ("HAM10000_images_part_2/ISIC_3.jpg", (5,), None, "HAM_2", "rosendahl"),
    ]
    experiment = make_experiment(data={"source": "site", "classes": list(HAM)}, partition={"kind": "natural"})
    site = Site.model_validate({"data": {"source": "ham10000", "images": str(tmp_path), "pooled": True}})
    mine = site_images(experiment, site, "vidir_modern", ["vidir_modern", "rosendahl"])
    assert [item.file[-10:] for item in mine.items("train")] == ["ISIC_1.jpg", "ISIC_2.jpg"]
    assert len(list(mine.decoded("train", at_size(16)))) == 2


def test_isic2019(tmp_path):
    images(tmp_path / "ISIC_2019_Training_Input", "ISIC_0", "ISIC_1_downsampled", "ISIC_2")
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text(
        f"image,{','.join(ISIC)},UNK\n"
        "ISIC_0,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
        "ISIC_1_downsampled,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
        "ISIC_2,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n"
    )
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_0,55.0,anterior torso,,female\n"
        "ISIC_1_downsampled,30.0,anterior torso,MSK4_0011169,female\n"
        "ISIC_2,60.0,upper extremity,BCN_0004730,male\n"
    )
    items = read_published(tmp_path, Data(source="site", classes=ISIC), SiteData(source="isic2019"))
    assert [(Path(item.file).stem, item.labels, item.split, item.group, item.site) for item in items] == [
        ("ISIC_0", (1,), None, "ISIC_0", None),
        ("ISIC_1_downsampled", (0,), None, "MSK4_0011169", "msk4"),
        ("ISIC_2", (7,), None, "BCN_0004730", "bcn_20000"),
    ]


FOLDS = (
    "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,target,center,fold,fold2\n"
    "ISIC_1,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1,0,train,train_0\n"
    "ISIC_2,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,7,5,test,test_5\n"
    "ISIC_3,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0,3,train,train_3\n"
)


def test_fed_isic2019_has_flambys_folds_and_centres(tmp_path):
    for folder in ("ISIC_2019_Training_Input", "ISIC_2019_Training_Input_preprocessed"):
        images(tmp_path / folder, "ISIC_1", "ISIC_2", "ISIC_3")
    (tmp_path / "train_test_split").write_text(FOLDS)
    items = read_published(tmp_path, Data(source="site", classes=ISIC), SiteData(source="fed_isic2019"))
    assert all(item.file.startswith("ISIC_2019_Training_Input_preprocessed/") for item in items)
    assert [(item.labels, item.split, item.group, item.site) for item in items] == [
        ((1,), "train", "ISIC_1", "bcn_20000"),
        ((7,), "test", "ISIC_2", "vienna_dias"),
        ((0,), "train", "ISIC_3", "rosendahl"),
    ]
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text("image,lesion_id\nISIC_1,L\nISIC_2,L\nISIC_3,L\n")
    items = read_published(tmp_path, Data(source="site", classes=ISIC), SiteData(source="fed_isic2019"))
    assert [item.group for item in items] == ["train L", "test L", "train L"]  # the published folds are kept


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("ham10000", None, "has no table HAM10000_metadata or HAM10000_metadata.csv"),
        ("fed_isic2019", ("7,5,test", "9,5,test"), "line 3: target '9', center '5' and fold 'test' should be 0 to 7"),
        ("fed_isic2019", ("0,3,train,", "0,3,val,"), "line 4: .* fold 'val' should be"),
        (
            "fed_isic2019",
            ("ISIC_", "ISIC_0"),
            "has none of the 3 images that .*train_test_split lists",
        ),
        ("fed_isic2019", ("target", "label"), "has no column 'target'; its columns are image, MEL"),
    ],
)
def test_what_is_not_as_published_is_named(tmp_path, source, change, message):
    images(tmp_path / "images", "ISIC_1", "ISIC_2", "ISIC_3")
    if change:
        (tmp_path / "train_test_split").write_text(FOLDS.replace(*change))
    with pytest.raises(UserError, match=message):
        read_published(tmp_path, Data(source="site", classes=ISIC), SiteData(source=source))


def test_a_class_that_the_experiment_lacks(tmp_path):
    images(tmp_path / "images", "ISIC_1", "ISIC_2", "ISIC_3")
    (tmp_path / "train_test_split").write_text(FOLDS)
    with pytest.raises(UserError, match=r"the label 'SCC' \(1 image\(s\), the first 'ISIC_2'\) means none of the"):
        read_published(tmp_path, Data(source="site", classes=ISIC[:7]), SiteData(source="fed_isic2019"))


def test_an_image_twice_in_the_table(tmp_path):
    images(tmp_path / "images", "ISIC_1", "ISIC_2", "ISIC_3")
    (tmp_path / "train_test_split").write_text(FOLDS + FOLDS.splitlines()[1] + "\n")
    with pytest.raises(
        UserError, match=r"1 of 4 rows .* a row above has the same image; .* \(first: 'ISIC_1' in line 5"
    ):
        read_published(tmp_path, Data(source="site", classes=ISIC), SiteData(source="fed_isic2019"))


def test_copies_of_kaggle_are_left_out_and_other_images_of_a_name_refused(tmp_path, caplog):
    part = "HAM10000_images_part_1"
    images(tmp_path, f"{part}/{part}/ISIC_1", f"ham10000{part[8:]}/ISIC_1", f"{part}/{part}/ISIC_2", "masks/ISIC_9")
    (tmp_path / "HAM10000_metadata.csv").mkdir()
    table = tmp_path / "HAM10000_metadata.csv" / "HAM10000_metadata.csv"
    table.write_text("lesion_id,image_id,dx\nHAM_1,ISIC_1,nv\nHAM_2,ISIC_2,mel\n")
    data, own = Data(source="site", classes=HAM), SiteData(source="ham10000")
    assert [item.file for item in read_published(tmp_path, data, own)] == [
        f"{part}/{part}/ISIC_1.jpg",
        f"{part}/{part}/ISIC_2.jpg",
    ]
    copies, unlisted = sorted(caplog.messages)[::-1]
    assert "1 of 4 images are not taken: they are copies of others of their name (first: 'ham10000_images_pa" in copies
    assert "1 of 4 images are not taken: no row of the tables has them (first: 'masks/ISIC_9.jpg')" in unlisted
    Image.new("RGB", (8, 6), "blue").save(tmp_path / "masks" / "ISIC_2.jpg")
    message = r"1 of 5 images .* have other content; keep one of them \(first: 'masks/ISIC_2.jpg' beside 'HAM10000_ima"
    with pytest.raises(UserError, match=message):
        read_published(tmp_path, data, own)


def test_a_site_may_have_its_own_centre_alone(tmp_path, caplog):
    rows = [line.replace("ISIC_1,", f"ISIC_{number},") for number in range(4, 8) for line in FOLDS.splitlines()[1:2]]
    (tmp_path / "train_test_split").write_text(FOLDS + "\n".join(rows) + "\n")
    images(tmp_path, "ISIC_2")
    data, own = Data(source="site", classes=ISIC), SiteData(source="fed_isic2019")
    assert [(item.file, item.site) for item in read_published(tmp_path, data, own)] == [("ISIC_2.jpg", "vienna_dias")]
    (warning,) = caplog.messages
    assert (
        "6 of 7 rows are not taken: the site has no image of their centres (bcn_20000 5, rosendahl 1) (first: "
        "'ISIC_1' in line 2, 'ISIC_3' in line 4, 'ISIC_4' in line 5, …)" in warning
    )
    with pytest.raises(UserError, match=r"6 of 7 rows .* not in any folder of .* is not 'pooled' in site.json \(first"):
        read_published(tmp_path, data, own.model_copy(update={"pooled": True}))
    images(tmp_path, "ISIC_5")  # a part of a centre
    with pytest.raises(
        UserError, match=r"4 of 7 rows are not taken: their images are not in any folder of .*'ISIC_1' in"
    ):
        read_published(tmp_path, data, own)


def test_classes_that_are_left_out_are_counted(tmp_path, caplog):
    images(tmp_path, "ISIC_1", "ISIC_2", "ISIC_3")
    (tmp_path / "train_test_split").write_text(FOLDS)
    own = SiteData(source="fed_isic2019", leave_out=("SCC", "MEL"))
    (item,) = read_published(tmp_path, Data(source="site", classes=ISIC[1:7]), own)
    assert item.values == ("NV",)
    assert "data.leave_out of site.json leaves out 'MEL' in 1, 'SCC' in 1 of 3 rows" in caplog.text


def test_a_table_with_tabs(tmp_path):
    images(tmp_path, "a/ISIC_1")
    (tmp_path / "HAM10000_metadata.tab").write_text("lesion_id\timage_id\tdx\tdataset\nHAM_1\tISIC_1\tnv\trosendahl\n")
    assert [
        item.site for item in read_published(tmp_path, Data(source="site", classes=HAM), SiteData(source="ham10000"))
    ] == ["rosendahl"]
