"""DICOM images made with pydicom, in every photometric and depth that is read."""

import io

import numpy as np
import pytest
from decoding import good
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from helpers import at_size
from pt_peft.data.dicom import is_dicom, read_dicom
from pt_peft.data.transforms import decode_files
from pt_peft.errors import UserError


def made(pixels: np.ndarray, photometric: str, bits: int, **attributes) -> bytes:
    """A DICOM file of `pixels` (H,W) or (H,W,3)."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Rows, data.Columns = pixels.shape[:2] if "NumberOfFrames" not in attributes else pixels.shape[1:3]
    data.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 if bits <= 8 else 16
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def shown(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    assert is_dicom(stream)
    return np.asarray(read_dicom(stream))


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
    table = Dataset()
    table.LUTDescriptor = [256, 0, 12]
    table.add_new("LUTData", "OW", (4095 * np.linspace(0, 1, 256) ** 2).round().astype(np.uint16).tobytes())
    pixels = (255 * RAMP).round().astype(np.uint8)
    content = made(pixels, "MONOCHROME2", 8, VOILUTSequence=[table])
    assert np.abs(shown(content).astype(float) - 255 * (pixels / 255) ** 2).max() <= 1.5


def test_colour():
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(shown(made(rgb, "RGB", 8)), rgb)
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    ybr = np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=-1).round().clip(0, 255).astype(np.uint8)
    assert np.abs(shown(made(ybr, "YBR_FULL", 8)).astype(int) - rgb).max() <= 3


def test_palette():
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    names = ("Red", "Green", "Blue")
    attributes = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in names}
    attributes |= {
        f"{name}PaletteColorLookupTableData": row.tobytes() for name, row in zip(names, colours, strict=True)
    }
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(
        shown(made(pixels, "PALETTE COLOR", 8, **attributes)), np.moveaxis(colours[:, pixels] >> 8, 0, -1)
    )


def test_through_the_pipeline(tmp_path):
    pixels = (RAMP * 4095).round().astype(np.uint16)
    (tmp_path / "a.dcm").write_bytes(made(pixels, "MONOCHROME1", 12))
    (image,) = good(decode_files(["a.dcm"], lambda name: (tmp_path / name).open("rb"), at_size(8), where="folder"))
    assert image.shape == (3, 8, 8)
    assert np.array_equal(image[0], image[2])
    assert np.abs(image[0] - (255 - 255 * RAMP)).max() <= 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            lambda: made(np.zeros((3, 8, 8), np.uint8), "MONOCHROME2", 8, NumberOfFrames=3),
            "has 3 frames; single-frame images",
        ),
        (
            lambda: made(np.zeros((8, 8), np.uint8), "MONOCHROME2", 8)[:-40],
            "The number of bytes of pixel data is less than expected",
        ),
        (lambda: bytes(128) + b"DICM", "is not a readable DICOM image ("),
    ],
    ids=["several frames", "truncated", "empty"],
)
def test_what_cannot_be_read_is_named(content, reason, tmp_path):
    (tmp_path / "a.dcm").write_bytes(content())
    (error,) = decode_files(["a.dcm"], lambda name: (tmp_path / name).open("rb"), at_size(8), where="folder")
    assert isinstance(error, UserError)
    assert f"image 'a.dcm' cannot be decoded ({reason}" in str(error)
