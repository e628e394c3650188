"""DICOM images made with pydicom, in every photometric and depth that is read."""

import io
from typing import Any

import numpy as np
import pytest
from decoding import good
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_files import REAL, made, shown, table
from helpers import at_size
from pt_peft.data import dicom
from pt_peft.data.dicom import is_dicom
from pt_peft.data.probe import probe
from pt_peft.data.transforms import decode_files
from pt_peft.errors import UserError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_depths_and_both_monochromes(bits):
    pixels = (RAMP * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
    plain = shown(made(pixels, "MONOCHROME2", bits))
    assert plain.dtype == np.uint8
    assert np.abs(plain - 255 * RAMP).max() <= 1
    assert np.array_equal(shown(made(pixels, "MONOCHROME1", bits)), 255 - plain)


def test_rescale_and_window():
    """A computed tomography slice: Hounsfield units = stored - 1024, seen through a window of 400 around 40."""
    hounsfield = np.round(-1000 + 2000 * RAMP)
    pixels = (hounsfield + 1024).astype(np.uint16)
    content = made(
        pixels,
        "MONOCHROME2",
        12,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 600],
        WindowWidth=[400, 1500],
    )
    # PS3.3 C.11.2.1.2.1
    expected = np.clip((hounsfield - (40 - 0.5)) / (400 - 1) + 0.5, 0, 1) * 255
    assert np.abs(shown(content).astype(float) - expected).max() <= 1


def test_signed_values():
    pixels = np.round(-1000 + 2000 * RAMP).astype(np.int16)
    assert np.abs(shown(made(pixels, "MONOCHROME2", 16)) - 255 * RAMP).max() <= 1


def test_voi_lut():
    squares = table((4095 * np.linspace(0, 1, 256) ** 2).round().astype(np.uint16), 0, 12)
    pixels = (255 * RAMP).round().astype(np.uint8)
    content = made(pixels, "MONOCHROME2", 8, VOILUTSequence=[squares])
    assert np.abs(shown(content).astype(float) - 255 * (pixels / 255) ** 2).max() <= 1.5


def test_colour():
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(shown(made(rgb, "RGB", 8)), rgb)
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    ybr = np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=-1).round().clip(0, 255).astype(np.uint8)
    assert np.abs(shown(made(ybr, "YBR_FULL", 8)).astype(int) - rgb).max() <= 3


def test_colours_of_less_than_8_bits_and_of_more():
    assert shown(made(np.full((2, 2, 3), 15, np.uint8), "RGB", 5))[0, 0, 0] == 123  # 255 x 15 / 31
    assert shown(made(np.full((2, 2, 3), 2048, np.uint16), "RGB", 12))[0, 0, 0] == 128
    remarks: list[str] = []
    assert shown(made(np.full((2, 2, 3), 4095, np.uint16), "RGB", 16), remarks=remarks)[0, 0, 0] == 16
    assert remarks == ["dark DICOM colours: uses 12 of its 16 bits, so that it is at most 15 of 255 bright"]


@pytest.mark.parametrize("photometric", ["YBR_PARTIAL_422", "HSV", "MONOCHROME3"])
def test_colours_that_nobody_converts_are_refused(photometric):
    with pytest.raises(ValueError, match=photometric):
        shown(made(np.zeros((2, 2, 3), np.uint8), photometric, 8))


NAMES = ("Red", "Green", "Blue")


def palette(first: int, count: int, bits: int, *tables: bytes, segmented: str = "") -> dict[str, Any]:
    attributes: dict[str, Any] = {f"{name}PaletteColorLookupTableDescriptor": [count, first, bits] for name in NAMES}
    data = {f"{segmented}{name}PaletteColorLookupTableData": one for name, one in zip(NAMES, tables, strict=True)}
    return attributes | data


def test_palette():
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    content = made(pixels, "PALETTE COLOR", 8, **palette(0, 256, 16, *(row.tobytes() for row in colours)))
    assert np.array_equal(shown(content), np.moveaxis(colours[:, pixels] >> 8, 0, -1))


@pytest.mark.parametrize(("kind", "bits"), [("u1", 8), ("u1", 16), ("<u2", 8), ("<u2", 16)])
def test_a_palette_of_8_bits_however_it_is_stored(kind, bits):
    """C.7.6.3.1.5: values outside of the table have its ends; of 16 bits too, whatever type the entries have."""
    pixels = np.array([[0, 1000, 1001, 1003, 2000]], np.uint16)
    tables = [(np.array([10, 20, 30, 40]) + 60 * colour).astype(kind).tobytes() for colour in range(3)]
    (row,) = shown(made(pixels, "PALETTE COLOR", 16, **palette(1000, 4, bits, *tables)))
    assert row[:, 0].tolist() == [10, 10, 20, 40, 40]
    assert row[:, 2].tolist() == [130, 130, 140, 160, 160]


def test_a_segmented_palette():
    """C.7.9.2: a segment of two values, then one of three that leads to 50 in steps of 10."""
    segments = np.array([0, 2, 10, 20, 1, 3, 50], np.uint8).tobytes() + b"\0"
    attributes = palette(1, 5, 8, *[segments] * 3, segmented="Segmented")
    content = made(np.array([[1, 2, 3, 4, 5, 6]], np.uint8), "PALETTE COLOR", 8, **attributes)
    assert shown(content)[0, :, 1].tolist() == [10, 20, 30, 40, 50, 50]


def test_a_palette_without_tables_is_refused():
    with pytest.raises(ValueError, match="RedPaletteColorLookupTableDescriptor"):
        shown(made(np.zeros((2, 2), np.uint8), "PALETTE COLOR", 8))


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_values_that_end_at_the_high_bit(kind):
    """PS3.5 section 8.1.1: 12 bits of 16, the highest of them bit 15; below them an overlay, say."""
    values = np.array([[-2048, -1, 0, 2047]] if kind is np.int16 else [[0, 1, 2048, 4095]])
    content = made((values * 16 + 5).astype(kind), "MONOCHROME2", 12, HighBit=15, WindowCenter=0, WindowWidth=8192)
    expected = ((values + 0.5) / 8191 + 0.5) * 255
    assert np.array_equal(shown(content), expected.round())


def test_through_the_pipeline(tmp_path):
    pixels = (RAMP * 4095).round().astype(np.uint16)
    (tmp_path / "a.dcm").write_bytes(made(pixels, "MONOCHROME1", 12))
    (image,) = good(decode_files(["a.dcm"], lambda name: (tmp_path / name).open("rb"), at_size(8), where="folder"))
    assert image.shape == (3, 8, 8)
    assert np.array_equal(image[0], image[2])
    assert np.abs(image[0] - (255 - 255 * RAMP)).max() <= 1


FRAMES = np.stack([np.full((8, 8), value, np.uint8) for value in (10, 20, 30)])


def test_a_frame_of_several():
    content = made(FRAMES, "MONOCHROME2", 8, NumberOfFrames=3, WindowCenter=15.5, WindowWidth=11)
    assert [shown(content, frame)[0, 0] for frame in range(3)] == [0, 255, 255]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: made(FRAMES, "MONOCHROME2", 8, NumberOfFrames=3), "has 3 frames or pages; data.frames in site.json "),
        (
            lambda: made(np.zeros((8, 8), np.uint8), "MONOCHROME2", 8)[:-40],
            "has pixels that cannot be read (The number of bytes of pixel data is less than expected",
        ),
        (lambda: bytes(128) + b"DICM", "is a DICOM object without pixels (of no SOP class)"),
        (lambda: (REAL / "rtplan.dcm").read_bytes(), "is a DICOM object without pixels (RT Plan Storage)"),
        (lambda: (REAL / "badVR.dcm").read_bytes(), "has a NumberOfFrames that is no number ("),
        (
            lambda: made(np.zeros((2, 2), np.uint8), "MONOCHROME2", 8, PixelPresentation="COLOR"),
            "has colours among its grey values (PS3.3 C.7.6.19), which are not supported",
        ),
    ],
    ids=["several frames", "truncated", "empty", "no image", "bad number", "supplemental palette"],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR IS")
def test_what_cannot_be_read_is_named(content, reason, tmp_path):
    (tmp_path / "a.dcm").write_bytes(content())
    (error,) = decode_files(["a.dcm"], lambda name: (tmp_path / name).open("rb"), at_size(8), where="folder")
    assert isinstance(error, UserError)
    assert f"image 'a.dcm' cannot be decoded ({reason}" in str(error)


PIXELS = (RAMP * 255).round().astype(np.uint8)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_or_without_file_meta_information(syntax):
    content = made(PIXELS, "MONOCHROME2", 8, syntax=syntax)
    length = int.from_bytes(content[140:144], "little")  # of the file meta information
    assert np.array_equal(shown(content), PIXELS)
    assert np.array_equal(shown(content[132:]), PIXELS)
    if syntax != ExplicitVRBigEndian:  # which needs no file meta information either, see the real file below
        assert np.array_equal(shown(content[144 + length :]), PIXELS)


@pytest.mark.parametrize("name", ["ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "no_meta_group_length.dcm"])
def test_real_files_are_dicom(name):
    with (REAL / name).open("rb") as stream:
        assert is_dicom(stream)
        assert stream.tell() == 0


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000"])
def test_other_images_are_not_dicom(format):
    stream = io.BytesIO()
    Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).save(stream, format)
    stream.seek(0)
    assert not is_dicom(stream)


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x00", bytes(300), b"file,label\n" * 40, b"\x08\0" * 200, b"\x02\0" * 200]
)
def test_other_files_are_not_dicom(content):
    assert not is_dicom(io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "package"),
    [("MR_small_jpeg_ls_lossless.dcm", "python-gdcm"), ("SC_rgb_jpeg_gdcm.dcm", "python-gdcm")],
)
def test_a_decoder_that_is_not_installed_is_named(name, package, monkeypatch):
    monkeypatch.setattr(dicom, "find_spec", lambda module: None)
    monkeypatch.setattr(dicom, "pixel_array", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("x " * 500)))
    monkeypatch.setattr(dicom, "get_decoder", lambda syntax: type("Decoder", (), {"is_available": False}))
    content = (REAL / name).read_bytes()
    (error,) = decode_files([name], lambda name: io.BytesIO(content), at_size(8), where="folder")
    reason = f"; the package '{package}' is not installed, which decodes it: pip install python-gdcm pylibjpeg"
    assert reason in str(error)
    assert reason in str(probe(content, "type"))


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_the_decoder_of_12_bit_jpeg_is_named_and_not_cut(name):
    content = (REAL / name).read_bytes()
    reason = "; the package 'pylibjpeg-libjpeg' is not installed, which decodes it: pip install pylibjpeg "
    reason += "pylibjpeg-libjpeg, whose licence is the GPL"
    (error,) = decode_files([name], lambda name: io.BytesIO(content), at_size(8), where="folder")
    assert reason in str(error)
    assert str(probe(content, "type")).endswith(reason)


def test_a_video_is_named():
    content = made(PIXELS, "MONOCHROME2", 8, syntax=MPEG4HP41, PixelData=encapsulate([bytes(8)]))
    with pytest.raises(
        ValueError, match=r"MPEG-4 AVC/H.264 High Profile / Level 4.1, which pydicom does not decode; save"
    ):
        shown(content)


DECODED = {
    "MR_small_jpeg_ls_lossless.dcm": "MR_small.dcm",
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "MR_small_RLE.dcm": "MR_small.dcm",
    "SC_rgb_jpeg_gdcm.dcm": None,
    "JPEGLSNearLossless_16.dcm": None,
    "GDCMJ2K_TextGBR.dcm": None,
}
"""Real files that the extra ``[dicom]`` decodes; the uncompressed file that shows the same, where there is one."""


@pytest.mark.parametrize(("name", "same"), DECODED.items())
def test_real_compressed_files(name, same):
    for module in ("gdcm", "openjpeg"):
        pytest.importorskip(module)
    image = shown((REAL / name).read_bytes())
    assert image.min() < image.max()
    if same:
        assert np.array_equal(image, shown((REAL / same).read_bytes()))


def test_more_pixels_than_pillow_takes_are_refused(monkeypatch):
    """Rows and columns of a file of few bytes may say gigabytes."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(ValueError, match="has 64 pixels; at most 62 would be right"):
        shown(made(np.zeros((8, 8), np.uint8), "MONOCHROME2", 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert shown(made(np.zeros((8, 8), np.uint8), "MONOCHROME2", 8)).shape == (8, 8)
