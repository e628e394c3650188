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
        ("fed_isic2019", ("ISIC_3", "ISIC_4"), "line 4: image 'ISIC_4' is not in any folder of"),
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


def test_an_image_twice_in_table_or_folders(tmp_path):
    images(tmp_path / "images", "ISIC_1", "ISIC_2", "ISIC_3")
    (tmp_path / "train_test_split").write_text(FOLDS + FOLDS.splitlines()[1] + "\n")
    with pytest.raises(UserError, match="line 5: image 'ISIC_1' is also in a row above"):
        read_published(tmp_path, Data(source="site", classes=ISIC), SiteData(source="fed_isic2019"))
    images(tmp_path / "small", "ISIC_2")
    with pytest.raises(UserError, match=r"image 'ISIC_2' is both 'images/ISIC_2.jpg' and 'small/ISIC_2.jpg'; keep one"):
        read_published(tmp_path, Data(source="site", classes=ISIC), SiteData(source="fed_isic2019"))


def test_a_table_with_tabs(tmp_path):
    images(tmp_path, "a/ISIC_1")
    (tmp_path / "HAM10000_metadata.tab").write_text("lesion_id\timage_id\tdx\tdataset\nHAM_1\tISIC_1\tnv\trosendahl\n")
    assert [
        item.site for item in read_published(tmp_path, Data(source="site", classes=HAM), SiteData(source="ham10000"))
    ] == ["rosendahl"]
