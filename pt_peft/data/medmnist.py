"""Class names and tasks of the two-dimensional data sets of MedMNIST v2 and v3, as in their ``INFO``.

Yang et al. 2023, doi:10.1038/s41597-022-01721-8. The user downloads the files, of any image size.
"""

from pt_peft.errors import UserError
from pt_peft.experiment.sections import Data, Task

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)

CLASSES: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "tissuemnist": (
        "collecting duct, connecting tubule",
        "distal convoluted tubule",
        "glomerular endothelial cells",
        "interstitial endothelial cells",
        "leukocytes",
        "podocytes",
        "proximal tubule segments",
        "thick ascending limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}

_TASKS: dict[str, Task] = {"chestmnist": "multilabel", "retinamnist": "ordinal"}


def medmnist(flag: str) -> Data:
    """The section ``data`` of an experiment on sites that have the ``.npz`` of a data set.

    Args:
        flag: MedMNIST's name of a two-dimensional data set, a key of `CLASSES`.

    Raises:
        UserError: for another name.
    """
    if flag not in CLASSES:
        raise UserError(f"'medmnist:{flag}': the two-dimensional data sets are {', '.join(CLASSES)}.")
    return Data(source="site", task=_TASKS.get(flag, "multiclass"), classes=CLASSES[flag])
