"""Which picture of a file is read, which way up, and on what it stands."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from pt_peft.data.stored import described, opaque, stored_image, upright
from pt_peft.data.transforms import to_rgb

FRAMES = [Image.new("L", (6, 4), value) for value in (10, 20, 30)]


def stack(format: str, frames=FRAMES, **options) -> io.BytesIO:
    stream = io.BytesIO()
    first, *others = [frame.convert("RGB") if format in ("WEBP", "AVIF") else frame for frame in frames]
    first.save(stream, format, save_all=True, append_images=others, **options)
    stream.seek(0)
    return stream


def values(stream: io.BytesIO, frame: int | None = None) -> float:
    stream.seek(0)
    return float(np.asarray(to_rgb(stored_image(stream, frame))).mean())


@pytest.mark.parametrize(("format", "options"), [("TIFF", {}), ("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_file_of_several_pictures_is_refused_unless_it_is_said_which(format, options):
    stream = stack(format, **options)
    assert described(stream) == (3, None)
    with pytest.raises(ValueError, match=r"has 3 frames or pages; data\.frames in site\.json .* or 'all'"):
        values(stream)
    assert [values(stream, frame) for frame in range(3)] == [10, 20, 30]
    with pytest.raises(ValueError, match=r"has 3 frame\(s\) or page\(s\), counted from 0; there is no 3"):
        values(stream, 3)


@pytest.mark.parametrize("format", ["TIFF", "GIF", "PNG", "WEBP"])
def test_a_file_of_one_picture_is_its_frame_0(format):
    stream = stack(format, FRAMES[:1])
    assert values(stream, 0) == values(stream) == pytest.approx(10, abs=1)
    with pytest.raises(ValueError, match=r"has 1 frame\(s\)"):
        values(stream, 1)


@pytest.mark.parametrize("kind", [1, 4])
def test_a_thumbnail_or_a_mask_of_a_tiff_is_no_page(kind):
    """TIFF 6.0: NewSubfileType 1 is a smaller copy of another page, 4 a mask."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[254] = kind
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream) as writer:
        FRAMES[0].save(writer, "TIFF")
        writer.newFrame()
        FRAMES[1].save(writer, "TIFF", tiffinfo=info)
    assert described(stream).frames == 1
    assert values(stream) == 10


def tiff(pixels: np.ndarray, photometric: int, tags: dict[int, int] | None = None) -> io.BytesIO:
    """A grey TIFF, written by hand: Pillow writes neither 0 for white in 16 bits nor a camera's directories."""
    height, width = pixels.shape
    size = pixels.itemsize
    own = {256: width, 257: height, 258: 8 * size, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    own |= {279: pixels.nbytes, 339: 3 if pixels.dtype.kind == "f" else 1} | (tags or {})
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(own.items()))
    head = b"II*\0" + struct.pack("<I", 8 + pixels.nbytes)
    return io.BytesIO(head + pixels.tobytes() + struct.pack("<H", len(own)) + entries + bytes(4))


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<f4"])
def test_white_is_zero_in_a_tiff_of_any_depth(dtype):
    """TIFF 6.0, section 4: PhotometricInterpretation 0, as scanners of films write it."""
    top = 1 if dtype == "<f4" else np.iinfo(dtype).max
    pixels = np.array([[0, top], [top, 0]], dtype)
    for photometric, expected in ((0, [[255, 0], [0, 255]]), (1, [[0, 255], [255, 0]])):
        image = stored_image(tiff(pixels, photometric))
        for intensity in ("image",) if dtype == "<f4" else ("type", "image"):
            assert np.asarray(to_rgb(image, intensity))[..., 0].tolist() == expected


def test_of_a_cameras_raw_file_the_preview_is_not_taken():
    """DNG and NEF are TIFFs whose first page is a thumbnail, with the sensor's picture below it."""
    pixels = np.full((3, 4), 7, np.uint8)
    raw = tiff(pixels, 1, {254: 1, 330: 8})
    with pytest.raises(ValueError, match="is a camera's raw file, of which only a small preview can be read"):
        stored_image(raw)
    assert values(tiff(pixels, 1, {254: 1})) == values(tiff(pixels, 1, {330: 8})) == 7
    text = tiff(pixels, 1, {254: 1}).getvalue().replace(struct.pack("<HH", 254, 4), struct.pack("<HH", 254, 2))
    assert values(io.BytesIO(text)) == 7  # of a broken type it says nothing


def test_the_previews_of_a_phones_jpeg_are_no_frames():
    stream = stack("MPO")
    assert getattr(Image.open(stream), "n_frames", 1) == 3
    assert values(stream) == 10


def test_16_bit_pgm_is_scaled_by_its_own_maximum():
    pixels = np.array([[0, 1024, 2048, 4095]], ">u2")
    image = stored_image(io.BytesIO(b"P5 4 1 4095\n" + pixels.tobytes()))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (2, 2), (200, 100, 50, 0)), (0, 0, 0)),
        (Image.new("RGBA", (2, 2), (200, 100, 50, 255)), (200, 100, 50)),
        (Image.new("RGBA", (2, 2), (200, 100, 50, 51)), (40, 20, 10)),  # a fifth
        (Image.new("LA", (2, 2), (200, 51)), (40, 40, 40)),
    ],
)
def test_what_is_transparent_stands_on_black(image, expected):
    assert to_rgb(image).getpixel((0, 0)) == expected


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_or_palette_entry_is_black(mode):
    image = Image.new("RGB", (2, 1), (90, 90, 90))
    image.putpixel((1, 0), (204, 204, 204))
    image = image.convert(mode)
    hidden = image.getpixel((0, 0))
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=hidden)
    shown = np.asarray(to_rgb(stored_image(io.BytesIO(stream.getvalue()))))[0, :, 0]
    assert shown.tolist() == [0, 204]


def test_nothing_is_done_to_what_cannot_be_transparent():
    image = Image.new("RGB", (2, 2))
    assert opaque(image) is image


def exif(orientation: int, *entries: tuple[int, int, int]) -> bytes:
    """EXIF of an orientation and further entries: tag, type and value."""
    rows = [(0x0112, 3, orientation), *entries]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(rows))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(rows)) + body + bytes(4)


WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "entry",
    [(0x0128, 12, 8), (0x0100, 2, 0x636261), (0x011A, 5, 9999), (0x011A, 99, 8), (0x8769, 4, 5)],
    ids=["number of another type", "text for a number", "beyond the end", "unknown type", "broken directory"],
)
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_broken_numbers_in_exif_leave_the_orientation(format, entry):
    stream = io.BytesIO()
    WIDE.save(stream, format, exif=exif(6, entry))
    remarks: list[str] = []
    image = upright(stored_image(io.BytesIO(stream.getvalue())), lambda kind, what: remarks.append(what))
    assert image.size == (4, 6)
    assert not remarks


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation(orientation):
    stream = io.BytesIO()
    WIDE.save(stream, "PNG", exif=exif(orientation))
    array = np.asarray(WIDE)
    turned = {
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: array[::-1].transpose(1, 0, 2),
        7: array[::-1, ::-1].transpose(1, 0, 2),
        8: array[:, ::-1].transpose(1, 0, 2),
    }
    assert np.array_equal(np.asarray(upright(Image.open(stream))), turned.get(orientation, array))


def test_exif_that_is_none_is_remarked():
    stream = io.BytesIO()
    WIDE.save(stream, "PNG", exif=b"Exif\0\0garbage!")
    remarks: list[str] = []
    image = upright(Image.open(stream), lambda kind, what: remarks.append(f"{kind}: {what}"))
    assert image.size == (6, 4)
    assert remarks[0].startswith("EXIF that cannot be read: has EXIF data that cannot be read (not a TIFF file")


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_png_whose_end_was_never_written_is_refused(keep):
    """A copy that stopped, in a file of the whole size: the rest of the pixels would be black."""
    noise = np.random.default_rng(0).integers(0, 60, (96, 128, 3))
    pixels = (noise + np.arange(128)[None, :, None]).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    content = stream.getvalue()
    written = int(keep * len(content))
    with pytest.raises((SyntaxError, OSError)):
        stored_image(io.BytesIO(content[:written] + bytes(len(content) - written))).load()
    assert np.array_equal(np.asarray(stored_image(io.BytesIO(content))), pixels)
