"""Grey values and palettes of DICOM images as they are meant to be displayed.

Grey values pass, in this order (PS3.4 N.2, PS3.3 C.11):

1. the Modality LUT (C.11.1): a table, or rescale slope and intercept;
2. the VOI LUT (C.11.2): a table, or a window. Without either, or where it has no meaning, the range of the image's own
   values, of which padding (C.7.5.1.1.2) is no part;
3. the inversion that MONOCHROME1 (C.7.6.3.1.2) and the Presentation LUT Shape INVERSE (C.11.6.1.2) ask for. They say
   the same, so an image that has both is inverted once.

The attributes of an enhanced multi-frame image are those of the frame's functional groups (C.7.6.16).
"""

from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut

from pt_peft.data.problems import Remark

Values = npt.NDArray[np.float64]
Stored = npt.NDArray[Any]
"""Stored values, of the integer or floating-point type that the file says."""

WINDOW = "DICOM window that has no meaning"
LUT = "DICOM lookup table that cannot be used"
RESCALE = "DICOM rescale that has no meaning"


def displayed(stored: Stored, data: Dataset, frame: int, remark: Remark) -> npt.NDArray[np.uint8]:
    """Grey values as displayed, from 0, black, to 255, white.

    Args:
        stored: stored values (H,W).
        data: the data set.
        frame: the frame that `stored` is, counted from 0; its functional groups count.
        remark: takes what the data set says and has no meaning.

    Returns:
        uint8 (H,W).

    Raises:
        ValueError: if there are values that are not finite.
    """
    if not np.isfinite(stored).all():
        raise ValueError("has values that are not finite")
    modality = _modality(stored, data, frame, remark)
    light = _voi(modality, _macro(data, frame, "FrameVOILUTSequence"), remark)
    if light is None:
        light = _own_range(modality.values, _padding(stored, data))
    grey = (255 * light).round().astype(np.uint8)
    inverted = data.PhotometricInterpretation == "MONOCHROME1" or data.get("PresentationLUTShape") == "INVERSE"
    return 255 - grey if inverted else grey


def coloured(stored: Stored, data: Dataset) -> npt.NDArray[np.uint8]:
    """The colours of the palette (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6, C.7.9).

    Entries are scaled by their type: 0 to 65535 becomes 0 to 255, unless none is above 255.

    Args:
        stored: stored values (H,W).
        data: the data set.

    Returns:
        uint8 (H,W,3).

    Raises:
        ValueError: if there is no palette, or its tables cannot be used.
    """
    tables: list[_Table] = []
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        descriptor = _words(data.get(f"{name}Descriptor"))
        if descriptor is None or len(descriptor) != 3:
            raise ValueError(f"has no {name}Descriptor of three numbers")
        first = _number_of(int(descriptor[1]), data.PixelRepresentation == 1)
        if f"Segmented{name}Data" in data:
            inputs = np.arange(first, first + (int(descriptor[0]) or 2**16))
            tables.append(_Table(first, apply_color_lut(inputs, data)[:, len(tables)]))
        elif (entries := _entries(data, f"{name}Data", int(descriptor[0]) or 2**16)) is not None:
            tables.append(_Table(first, entries))
        else:
            raise ValueError(f"has no {name}Data of {int(descriptor[0]) or 2**16} entries")
    colours = np.stack([table(stored) for table in tables], axis=-1)
    return (colours >> (8 if max(table.entries.max() for table in tables) > 255 else 0)).astype(np.uint8)


def row_to_column_spacing(data: Dataset, frame: int) -> float | None:
    """How many times as high as wide a pixel is (PS3.3 C.7.6.3.1.7, 10.7.1); None if the data set does not say.

    Args:
        data: the data set.
        frame: counted from 0; its functional groups count.
    """
    measures = _macro(data, frame, "PixelMeasuresSequence")
    for holder, name in (
        (measures, "PixelSpacing"),
        (data, "ImagerPixelSpacing"),
        (data, "NominalScannedPixelSpacing"),
        (data, "PixelAspectRatio"),
    ):
        high, wide = (_number(holder, name, place) for place in (0, 1))
        if high and wide and min(high, wide) > 0:
            return high / wide
    return None


class _Table(NamedTuple):
    """A lookup table."""

    first: int
    """The value that is mapped to the first entry; lower values are too, and higher values to the last one."""
    entries: npt.NDArray[np.unsignedinteger[Any]]

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
        places = np.rint(values).astype(np.int64) - self.first
        return self.entries[places.clip(0, len(self.entries) - 1)]


class _Modality(NamedTuple):
    """The output of the Modality LUT."""

    values: Values
    """float64 (H,W)."""
    signed: bool
    """Whether values below 0 are possible, if there are any or not."""
    step: float
    """The distance of two values that are next to each other."""


def _modality(stored: Stored, data: Dataset, frame: int, remark: Remark) -> _Modality:
    """The stored values through the Modality LUT (C.11.1): a table, or rescale slope and intercept (C.7.6.16.2.9)."""
    signed = data.get("PixelRepresentation") == 1
    # Angiography stores what is to be displayed; its table leads back to the beam's intensity (C.8.7.1.1.2).
    beam = data.get("Modality") in ("XA", "XRF") and data.get("PixelIntensityRelationship") in ("LOG", "DISP")
    if not beam and (table := _first_table(data, "ModalityLUTSequence", signed, remark)):
        return _Modality(table(stored).astype(np.float64), False, 1)
    transformation = _macro(data, frame, "PixelValueTransformationSequence")
    slope, intercept = (_number(transformation, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope == 0:
        remark(RESCALE, "has the rescale slope 0, which would make all values the same; it is shown without rescale")
        slope = intercept = None
    slope, intercept = 1 if slope is None else slope, intercept or 0
    bits = int(data.get("BitsStored") or 0)
    ends = (-(2**bits) / 2, 2**bits / 2 - 1) if signed else (0, 2**bits - 1)
    lowest = min(slope * end + intercept for end in ends)
    return _Modality(stored.astype(np.float64) * slope + intercept, lowest < 0, abs(slope))


def _voi(modality: _Modality, macro: Dataset, remark: Remark) -> Values | None:
    """The output of the VOI LUT (C.11.2), float64 (H,W) in [0,1]; None if `macro` has none that can be used.

    A table goes before a window. Its entries are scaled by the highest of them, not by the bits that its descriptor
    promises: a table of 12 bits whose descriptor says 16 would be black.
    """
    # C.11.2.1.1: the first value mapped is signed if the values may be.
    if table := _first_table(macro, "VOILUTSequence", modality.signed, remark):
        return table(modality.values) / float(max(table.entries.max(), 1))
    if "WindowCenter" not in macro and "WindowWidth" not in macro:
        return None
    return _windowed(modality, macro, remark)


def _windowed(modality: _Modality, macro: Dataset, remark: Remark) -> Values | None:
    """The values through the first window (C.11.2.1.2), float64 (H,W) in [0,1]; None if it has no meaning."""
    centre, width = (_number(macro, name) for name in ("WindowCenter", "WindowWidth"))
    function = str(macro.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        remark(WINDOW, f"has the VOI LUT Function '{function}', which is none of the standard's; it is taken as LINEAR")
        function = "LINEAR"
    # LINEAR needs a width of at least 1. Who writes less has values that are finer than 1, and means LINEAR_EXACT.
    too_narrow = function == "LINEAR" and width is not None and width < 1 and modality.step >= width
    if centre is None or width is None or width <= 0 or too_narrow:
        shown = "/".join("none" if value is None else f"{value:g}" for value in (centre, width))
        remark(WINDOW, f"has a {function} window of centre/width {shown}; the range of its own values is shown instead")
        return None
    if function == "LINEAR" and width < 1:
        remark(WINDOW, f"has a LINEAR window of width {width:g}, less than 1; it is taken as LINEAR_EXACT")
        function = "LINEAR_EXACT"
    from_centre = modality.values - centre
    if function == "SIGMOID":
        return (1 + np.tanh(2 * from_centre / width)) / 2  # 1 / (1 + exp(-4 (x - c) / w))
    if function == "LINEAR_EXACT":
        return (from_centre / width + 0.5).clip(0, 1)
    if width == 1:
        return (from_centre > -0.5).astype(np.float64)
    return ((from_centre + 0.5) / (width - 1) + 0.5).clip(0, 1)


def _own_range(values: Values, padding: npt.NDArray[np.bool_]) -> Values:
    """The values from their lowest, 0, to their highest, 1, of which `padding` is no part; all 0 if they are equal."""
    own = values if padding.all() else values[~padding]
    return ((values - own.min()) / max(own.max() - own.min(), np.finfo(np.float64).tiny)).clip(0, 1)


def _padding(stored: Stored, data: Dataset) -> npt.NDArray[np.bool_]:
    """Which stored values are padding: one value, or the range up to a limit, both included (C.7.5.1.1.2)."""
    prefix = {"f": "Float", "d": "DoubleFloat"}.get(stored.dtype.char, "")
    value, limit = (_number(data, f"{prefix}PixelPadding{name}") for name in ("Value", "RangeLimit"))
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    # Of a value representation that is not the pixels', the same 16 bits count: 63536 is -2000.
    ends = [value, value if limit is None else limit]
    if not prefix:
        ends = [_number_of(int(end) & 0xFFFF, stored.dtype.kind == "i") for end in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def _macro(data: Dataset, frame: int, sequence: str) -> Dataset:
    """What holds the attributes of a functional group: the frame's item, the shared one, or else the data set."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items: list[Dataset] = data.get(groups) or []
        if index < len(items) and (macro := items[index].get(sequence)):
            return macro[0]
    return data


def _first_table(data: Dataset, sequence: str, signed: bool, remark: Remark) -> _Table | None:
    """The first table of a sequence that can be used; None if there is none.

    Args:
        data: the data set, or the functional group that has the sequence.
        sequence: the keyword.
        signed: whether the values that the table takes may be negative.
        remark: takes items that cannot be used.
    """
    items: list[Dataset] = data.get(sequence) or []
    for item in items:
        descriptor = _words(item.get("LUTDescriptor"))
        if descriptor is None or len(descriptor) != 3:
            remark(LUT, f"has an item of {sequence} without a descriptor of three numbers; it is left out")
            continue
        count = int(descriptor[0]) or 2**16
        entries = _entries(item, "LUTData", count)
        if entries is not None:
            # Implicit VR does not tell: pydicom then guesses by the stored values, not by those that the table takes.
            said = item["LUTDescriptor"].VR == "SS" and item.original_encoding[0] is not True
            return _Table(_number_of(int(descriptor[1]), signed or said), entries)
        remark(LUT, f"has an item of {sequence} without a table of {count} entries; it is left out")
    return None


def _entries(data: Dataset, keyword: str, count: int) -> npt.NDArray[np.unsignedinteger[Any]] | None:
    """The entries of a table: words, or bytes where there are just enough for `count`; None for another number.

    A table of words that is cut off is none: its bytes would be entries that nobody has written.
    """
    words = _words(data.get(keyword), big_endian=data.original_encoding[1] is False)
    if words is None:
        return None
    if len(words) >= count:
        return words[:count]
    return words.view(np.uint8)[:count] if len(words) == (count + 1) // 2 else None


def _words(value: Any, big_endian: bool = False) -> npt.NDArray[np.uint16] | None:
    """The value of an attribute of 16-bit words, which pydicom gives as numbers or as bytes; None without a value."""
    if value is None or len(value if isinstance(value, bytes) else b"") % 2:
        return None
    if isinstance(value, bytes):
        return np.frombuffer(value, ">u2" if big_endian else "<u2").astype("<u2")
    return (np.atleast_1d(np.array(value, np.int64)) & 0xFFFF).astype("<u2")


def _number_of(word: int, signed: bool) -> int:
    """A word as a number, of two's complement if `signed`."""
    return word - 2**16 if signed and word >= 2**15 else word


def _number(data: Dataset, keyword: str, place: int = 0) -> float | None:
    """The first value of an attribute, or that at `place`; None if it is absent, empty or not a finite number."""
    try:
        value: Any = data.get(keyword)
        values: Any = cast("MultiValue[Any]", value) if isinstance(value, MultiValue) else [value]
        number = float(values[place])
    except (IndexError, TypeError, ValueError):  # pydicom raises ValueError for text that is no number
        return None
    return number if np.isfinite(number) else None
