"""DICOM files for tests."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from pt_peft.data.dicom import is_dicom, read_dicom

REAL = Path(pydicom.__file__).parent / "data" / "test_files"
"""Files that pydicom's wheel brings along."""


def made(
    pixels: np.ndarray, photometric: str, bits: int, *, syntax: UID = ExplicitVRLittleEndian, **attributes: Any
) -> bytes:
    """A DICOM file of `pixels` (H,W) or (H,W,3), after the frames if there are ``NumberOfFrames``.

    Attributes are values, or whole elements where pydicom would choose another value representation.
    """
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Rows, data.Columns = pixels.shape[:2] if "NumberOfFrames" not in attributes else pixels.shape[1:3]
    data.SamplesPerPixel = 1 if photometric.startswith(("MONOCHROME", "PALETTE")) else 3
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = (pixels if syntax.is_little_endian else pixels.byteswap()).tobytes()
    setattr(data, "FloatPixelData" if pixels.dtype.kind == "f" else "PixelData", content)
    for name, value in attributes.items():
        if isinstance(value, DataElement):
            data[name] = value
        else:
            setattr(data, name, value)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def item(**attributes) -> Dataset:
    """An item of a sequence."""
    data = Dataset()
    for name, value in attributes.items():
        setattr(data, name, value)
    return data


def table(entries: np.ndarray, first: int, bits: int, vr: str = "US") -> Dataset:
    """An item of a LUT sequence: the bytes of `entries`, a descriptor of value representation `vr`."""
    data = Dataset()
    data.add_new("LUTDescriptor", vr, [len(entries) % 2**16, first, bits])
    data.add_new("LUTData", "OW", entries.tobytes())
    return data


def shown(content: bytes, frame: int | None = None, remarks: list[str] | None = None) -> np.ndarray:
    """What the product displays of a file. Its remarks are added to `remarks`; without it there must be none."""
    stream = io.BytesIO(content)
    assert is_dicom(stream)
    said: list[str] = []
    image = np.asarray(read_dicom(stream, frame, lambda kind, what: said.append(f"{kind}: {what}")))
    if remarks is None:
        assert not said
    else:
        remarks += said
    return image
