"""Grey values of DICOM images, against the steps of PS3.3 worked out by hand."""

from typing import Any

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicom_files import item, made, shown, table

GREY = "MONOCHROME2"
FIVE = np.array([[0, 1000, 2000, 3000, 4000]], np.uint16)
OWN_RANGE = [0, 64, 128, 191, 255]
"""`FIVE` from its lowest to its highest value: 255 times 0, 1/4, 1/2 (127.5, to the even number), 3/4 and 1."""


def row(
    pixels: np.ndarray, photometric: Any = GREY, bits: Any = 12, *, remarks=None, frame=None, **attributes
) -> list[int]:
    return shown(made(pixels, photometric, bits, **attributes), frame, remarks)[0].tolist()


def test_a_linear_window():
    """C.11.2.1.2.1: y = (x - (c - 0.5)) / (w - 1) + 0.5."""
    pixels = np.array([[0, 1023, 2047, 2048, 4095]], np.uint16)
    # (1023 - 2047.5) / 4095 + 0.5 = 0.24982; (2047 - 2047.5) / 4095 + 0.5 = 0.49988; 2048: 0.50012
    assert row(pixels, WindowCenter=2048, WindowWidth=4096) == [0, 64, 127, 128, 255]


def test_a_linear_window_of_width_1_is_a_threshold():
    assert row(np.array([[1, 2, 3, 4]], np.uint16), WindowCenter=3, WindowWidth=1) == [0, 0, 255, 255]


def test_a_linear_exact_window():
    """C.11.2.1.3.2: y = (x - c) / w + 0.5."""
    pixels = np.array([[5, 6, 8, 10, 12, 14, 15]], np.uint16)
    exact = row(pixels, WindowCenter=10, WindowWidth=8, VOILUTFunction="LINEAR_EXACT")
    assert exact == [0, 0, 64, 128, 191, 255, 255]  # 0, 1/4, 1/2, 3/4, 1


def test_a_sigmoid_window():
    """C.11.2.1.3.1: y = 1 / (1 + exp(-4 (x - c) / w))."""
    pixels = np.array([[0, 6, 10, 14, 4095]], np.uint16)
    # exponents 5, 2, 0, -2, -2042: 0.00669, 0.11920, 0.5, 0.88080, 1
    assert row(pixels, WindowCenter=10, WindowWidth=8, VOILUTFunction="SIGMOID") == [2, 30, 128, 225, 255]


def test_a_window_after_a_negative_slope():
    """Values 1000, -1000, -3000, -5000, -7000: the highest stored value is the darkest."""
    rescale = {"RescaleSlope": -2, "RescaleIntercept": 1000}
    # (-3000 + 3000.5) / 4000 + 0.5 = 0.500125
    assert row(FIVE, WindowCenter=-3000, WindowWidth=4001, **rescale) == [255, 255, 128, 0, 0]
    assert row(FIVE, **rescale) == OWN_RANGE[::-1]


@pytest.mark.parametrize(
    ("centre", "width"), [(0, 0), (2048, -4096), (None, None), (2048, None), (None, 400), (5, 0.5), (["", 3], ["", 4])]
)
@pytest.mark.parametrize("function", ["LINEAR", None])
def test_a_window_without_a_meaning_is_remarked_and_the_own_range_shown(centre, width, function):
    remarks: list[str] = []
    window = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    assert row(FIVE, remarks=remarks, **window) == OWN_RANGE
    (remark,) = remarks
    assert remark.startswith("DICOM window that has no meaning: has a LINEAR window of centre/width ")
    assert remark.endswith("; the range of its own values is shown instead")


def test_a_width_below_1_of_values_that_are_finer_is_exact():
    remarks: list[str] = []
    pixels = np.array([[0, 25, 41, 50, 75, 100]], np.uint16)  # times 0.01; (0.41 - 0.5) / 0.5 + 0.5 = 0.32
    fine = {"RescaleSlope": 0.01, "RescaleIntercept": 0, "WindowCenter": 0.5, "WindowWidth": 0.5}
    assert row(pixels, remarks=remarks, **fine) == [0, 0, 82, 128, 255, 255]
    assert remarks == [
        "DICOM window that has no meaning: has a LINEAR window of width 0.5, less than 1; it is taken as LINEAR_EXACT"
    ]
    assert row(pixels, VOILUTFunction="LINEAR_EXACT", **fine) == [0, 0, 82, 128, 255, 255]


def test_an_unknown_function_is_linear():
    remarks: list[str] = []
    window = {"WindowCenter": 2000, "WindowWidth": 4001, "VOILUTFunction": "CUBIC"}
    assert row(FIVE, remarks=remarks, **window) == [0, 64, 128, 191, 255]
    assert len(remarks) == 1


def test_a_slope_of_0_is_left_out():
    remarks: list[str] = []
    assert row(FIVE, remarks=remarks, RescaleSlope=0, RescaleIntercept=5) == OWN_RANGE
    assert len(remarks) == 1


TWELVE_TO_EIGHT = (np.arange(4096) // 16).astype(np.uint8)
"""A table of 4096 entries: an input over 16, rounded down."""


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        (TWELVE_TO_EIGHT.astype("<u2"), 8),
        (TWELVE_TO_EIGHT, 8),
        (TWELVE_TO_EIGHT, 16),
        ((TWELVE_TO_EIGHT.astype("<u2") * 16 + 15), 12),
        ((TWELVE_TO_EIGHT.astype("<u2") * 16 + 15), 16),
    ],
    ids=["8 bits in words", "8 bits packed", "packed, descriptor says 16", "12 bits", "12 bits, descriptor says 16"],
)
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_voi_table_is_scaled_by_its_own_maximum(entries, bits, syntax):
    """C.11.2.1.1."""
    if syntax is ExplicitVRBigEndian:
        entries = entries.view("<u2").byteswap().view(entries.dtype)
    more = {"syntax": syntax} if syntax else {}
    displayed = row(FIVE, VOILUTSequence=[table(entries, 0, bits)], **more)
    assert np.abs(np.array(displayed) - [0, 62, 125, 187, 250]).max() <= 1


def test_a_voi_table_of_65536_entries_says_0():
    entries = (np.arange(2**16) // 256).astype("<u2")
    pixels = np.array([[0, 256, 32768, 65535]], np.uint16)
    assert row(pixels, bits=16, VOILUTSequence=[table(entries, 0, 8)]) == [0, 1, 128, 255]


def test_values_outside_of_a_voi_table_have_its_ends():
    steps = table(np.array([10, 20, 40], "<u2"), 1000, 8)
    assert row(np.array([[0, 1000, 1001, 1002, 4095]], np.uint16), VOILUTSequence=[steps]) == [64, 64, 128, 255, 255]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, None])
@pytest.mark.parametrize("vr", ["US", "SS"])
def test_the_first_value_mapped_is_signed_as_the_values_may_be(vr, syntax):
    first = -2 if vr == "SS" else 2**16 - 2
    ramp = table(np.array([0, 51, 102, 153, 204, 255], "<u2"), first, 8, vr)
    more = {"VOILUTSequence": [ramp], **({"syntax": syntax} if syntax else {})}
    assert row(np.array([[-2, -1, 0, 3]], np.int16), **more) == [0, 51, 102, 255]
    # Of values that rescale may make negative, though none of them is.
    rescaled = row(np.array([[1024, 1027]], np.uint16), RescaleSlope=1, RescaleIntercept=-1024, **more)
    assert rescaled == [102, 255]


@pytest.mark.parametrize("entries", [None, 0, 3])
def test_a_voi_item_without_a_whole_table_is_remarked_and_left_out(entries):
    broken = item(LUTExplanation="none")
    if entries is not None:
        broken = table(np.ones(entries, "<u2"), 0, 8)
        broken.LUTDescriptor = [256, 0, 8]
    window = {"WindowCenter": 2000, "WindowWidth": 4001}
    remarks: list[str] = []
    assert row(FIVE, remarks=remarks, VOILUTSequence=[broken], **window) == [0, 64, 128, 191, 255]
    falling = table(np.array([255, 0], "<u2"), 0, 8)
    assert row(FIVE, remarks=remarks, VOILUTSequence=[broken, falling]) == [255, 0, 0, 0, 0]
    assert [remark.split(":")[0] for remark in remarks] == ["DICOM lookup table that cannot be used"] * 2


SQUARES = np.array([0, 1, 4, 9, 16], "<u2")


def test_a_modality_table_then_a_window():
    """C.11.1.1.1: stored -1, 0, 1, 2, 3 becomes 0, 1, 4, 9, 16."""
    pixels = np.array([[-5, -1, 0, 1, 2, 3, 9]], np.int16)
    squares = {"ModalityLUTSequence": [table(SQUARES, -1, 16, "SS")]}
    # (4 - 7.5) / 15 + 0.5 = 0.26667; (9 - 7.5) / 15 + 0.5 = 0.6
    assert row(pixels, WindowCenter=8, WindowWidth=16, **squares) == [0, 0, 17, 68, 153, 255, 255]
    assert row(pixels, **squares) == [0, 0, 16, 64, 143, 255, 255]


@pytest.mark.parametrize(("relation", "applied"), [("LIN", True), ("LOG", False), ("DISP", False)])
def test_angiography_shows_what_is_stored(relation, applied):
    """C.8.7.1.1.2."""
    pixels = np.array([[0, 2, 4]], np.uint16)
    angiography = {"Modality": "XA", "PixelIntensityRelationship": relation}
    displayed = row(pixels, ModalityLUTSequence=[table(SQUARES, 0, 16)], **angiography)
    assert displayed == ([0, 64, 255] if applied else [0, 128, 255])


def transformed(slope: float, intercept: float, centre: float, width: float):
    """Functional groups of a rescale and a window (C.7.6.16.2.9, C.7.6.16.2.10)."""
    return item(
        PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")],
        FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=width, VOILUTFunction="LINEAR_EXACT")],
    )


def test_functional_groups_of_all_frames():
    shared = {"SharedFunctionalGroupsSequence": [transformed(2, 100, 4100, 8000)]}
    # 2 x 1000 + 100 = 2100; (2100 - 4100) / 8000 + 0.5 = 0.25
    assert row(FIVE[None], NumberOfFrames=1, **shared) == [0, 64, 128, 191, 255]
    assert row(FIVE, **shared, WindowCenter=9, WindowWidth=9, RescaleSlope=-1) == [0, 64, 128, 191, 255]


def test_functional_groups_of_a_frame_go_before_the_shared_ones():
    frames = np.stack([FIVE, FIVE])
    groups = {
        "SharedFunctionalGroupsSequence": [transformed(1, 0, 9, 9)],
        "PerFrameFunctionalGroupsSequence": [transformed(1, 0, 2000, 4000), transformed(-1, 0, -1000, 2000)],
        "NumberOfFrames": 2,
    }
    assert row(frames, frame=0, **groups) == [0, 64, 128, 191, 255]
    assert row(frames, frame=1, **groups) == [255, 128, 0, 0, 0]


def test_a_voi_table_of_a_functional_group():
    groups = item(FrameVOILUTSequence=[item(VOILUTSequence=[table(np.array([255, 0], "<u2"), 1000, 8)])])
    assert row(FIVE, SharedFunctionalGroupsSequence=[groups]) == [255, 255, 0, 0, 0]


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_inversion(photometric, shape, inverted):
    """C.7.6.3.1.2, C.8.11.3.1.2: MONOCHROME1 comes with INVERSE, and is inverted once."""
    displayed = row(FIVE, photometric, WindowCenter=2000, WindowWidth=4001, PresentationLUTShape=shape)
    assert displayed == ([255, 191, 127, 64, 0] if inverted else [0, 64, 128, 191, 255])


@pytest.mark.parametrize(
    ("padding", "displayed"),
    [
        ({"PixelPaddingValue": 4000}, [0, 85, 170, 255, 255]),
        ({"PixelPaddingValue": 3000, "PixelPaddingRangeLimit": 4000}, [0, 128, 255, 255, 255]),
        ({"PixelPaddingValue": 1000, "PixelPaddingRangeLimit": 0}, [0, 0, 0, 128, 255]),
        ({"PixelPaddingValue": 77}, OWN_RANGE),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, OWN_RANGE),
    ],
    ids=["one value", "range", "range from above", "nowhere", "everywhere"],
)
def test_padding_is_no_part_of_the_own_range(padding, displayed):
    """C.7.5.1.1.2."""
    assert row(FIVE, **padding) == displayed


@pytest.mark.parametrize(("vr", "value"), [("SS", -2000), ("US", 2**16 - 2000)])
def test_padding_of_signed_values(vr, value):
    pixels = np.array([[-2000, 0, 50, 100]], np.int16)
    assert row(pixels, bits=16, PixelPaddingValue=DataElement("PixelPaddingValue", vr, value)) == [0, 0, 128, 255]


def test_padding_counts_before_rescale():
    pixels = np.array([[-2000, 0, 50, 100]], np.int16)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    assert row(pixels, bits=16, PixelPaddingValue=-2000, **rescale) == [0, 0, 128, 255]


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        row(np.array([[0, np.inf]], np.float32), bits=32)
    assert row(np.array([[-0.5, 0, 0.5]], np.float32), bits=32) == [0, 128, 255]


def test_padding_beyond_the_pixels_type_is_no_other_value():
    """The range 250 to 260 holds the two highest of these 8 bits, not those below 5."""
    pixels = np.array([[0, 4, 100, 200, 255, 250]], np.uint8)
    ends = {"PixelPaddingValue": 250, "PixelPaddingRangeLimit": 260}
    assert row(pixels, bits=8, **ends) == [0, 5, 128, 255, 255, 255]  # 255 times 4/200 = 5.1, 100/200 = 127.5


def test_the_first_value_of_a_table_in_implicit_vr():
    """Values 0.5 are not negative: 40000 is meant, though pydicom reads -25536 where stored values are signed."""
    entries = np.arange(256, dtype=np.uint16)
    pixels = np.array([[-1, 0, 1]], np.int16)
    rescale = {"RescaleSlope": "0.0001", "RescaleIntercept": "0.5"}
    voi = [table(entries, 40000, 8)]
    small = row(pixels, bits=11, syntax=ImplicitVRLittleEndian, VOILUTSequence=voi, **rescale)
    assert small == [0, 0, 0]  # below the first value: the first entry


def test_a_table_of_words_that_is_cut_off_is_left_out():
    remarks: list[str] = []
    cut = table(np.full(256, 1000, np.uint16), 0, 16)
    cut.LUTDescriptor = [300, 0, 16]
    assert row(FIVE, VOILUTSequence=[cut], remarks=remarks) == OWN_RANGE
    assert remarks == [
        "DICOM lookup table that cannot be used: has an item of VOILUTSequence without a table of 300 entries; it is "
        "left out"
    ]


@pytest.mark.parametrize(
    "said",
    [
        {"PixelAspectRatio": [4, 3]},
        {"PixelSpacing": [0.4, 0.3]},
        {"ImagerPixelSpacing": [0.4, 0.3], "PixelAspectRatio": [1, 1]},
        {"SharedFunctionalGroupsSequence": [item(PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.6])])]},
    ],
)
def test_pixels_that_are_not_square_are_remarked(said):
    remarks: list[str] = []
    assert row(FIVE, remarks=remarks, **said) == OWN_RANGE
    shape = "has pixels that are 1.33 times as high as wide; it is shown as if they were square"
    assert remarks == [f"DICOM pixels that are not square: {shape}"]


def test_square_pixels_need_no_remark():
    for said in ({"PixelSpacing": [0.3, 0.301]}, {"PixelSpacing": None}, {"PixelAspectRatio": [0, 1]}):
        assert row(FIVE, **said) == OWN_RANGE
