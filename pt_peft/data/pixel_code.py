"""The identity of the code that computes pixels: a cached image is valid as long as it does not change."""

import hashlib
from functools import cache

from PIL import features

from pt_peft.code_key import code_key, library_version

DECODERS = {
    "cupy": "cupy",
    "gdcm": "python-gdcm",
    "jpeg_ls": "pyjpegls",
    "libjpeg": "pylibjpeg-libjpeg",
    "nvidia.nvimgcodec": "nvidia-nvimgcodec",
    "openjpeg": "pylibjpeg-openjpeg",
    "pylibjpeg": "pylibjpeg",
    "rle": "pylibjpeg-rle",
}
"""What pydicom and MONAI use where they find it, and the distributions of it: one that is installed later decodes what
could not be read before."""

LIBRARIES = ("avif", "jpg", "jpg_2000", "libjpeg_turbo", "libtiff", "mozjpeg", "webp", "zlib", "zlib_ng")
"""Decoders within Pillow, which a system may replace."""


@cache
def pixel_code() -> str:
    """SHA-256, in hex, over the source, the packages and the libraries that pixels are computed with."""
    parts = [code_key("pt_peft.data.pixels")]
    parts += [f"{module} {library_version(module, distribution)}" for module, distribution in DECODERS.items()]
    parts += [f"{name} {features.version(name)}" for name in LIBRARIES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
