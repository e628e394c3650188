"""Any image file becomes uint8 (3,S,S), upright, in the right order of axes."""

import io
from typing import get_args

import monai.transforms
import numpy as np
import pytest
import torch
from decoding import good
from PIL import Image

from helpers import at_size
from pt_peft.data.augmentation import AUGMENTATIONS, Augmentation, RandomMove, views_of
from pt_peft.data.transforms import decode_files, to_rgb, transform_arrays
from pt_peft.data.untracked import untracked
from pt_peft.data.views import CORNERS, VIEWS, augmented, numbers, view
from pt_peft.experiment.sections import Data
from pt_peft.seeds import derive_seed


def decoded(image: Image.Image, size: int, format: str = "PNG", fit: str = "pad", **save) -> np.ndarray:
    stream = io.BytesIO()
    image.save(stream, format, **save)
    decoding = at_size(size, fit=fit)
    (array,) = good(decode_files(["image"], lambda name: io.BytesIO(stream.getvalue()), decoding, where="test"))
    assert array.shape == (3, size, size)
    assert array.dtype == np.uint8
    return array


FITS = get_args(Data.model_fields["fit"].annotation)


def quadrants(width: int, height: int) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2, 0] = 255
    array[: height // 2, width // 2 :, 1] = 255
    array[height // 2 :, : width // 2, 2] = 255
    array[height // 2 :, width // 2 :] = 255
    return Image.fromarray(array)


def assert_upright(array: np.ndarray) -> None:
    low, high = array.shape[1] // 4, 3 * array.shape[1] // 4
    assert tuple(array[:, low, low]) == (255, 0, 0)
    assert tuple(array[:, low, high]) == (0, 255, 0)
    assert tuple(array[:, high, low]) == (0, 0, 255)
    assert tuple(array[:, high, high]) == (255, 255, 255)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (64, 96), (32, 32), (20, 24)])
def test_images_are_neither_transposed_nor_mirrored(shape, fit):
    assert_upright(decoded(quadrants(*shape), 32, fit=fit))


def test_the_exif_orientation_is_respected():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: shown upright after a quarter turn clockwise
    assert_upright(decoded(quadrants(64, 48).transpose(Image.Transpose.ROTATE_90), 32, exif=exif))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_colour_modes(mode):
    assert_upright(decoded(quadrants(32, 32).convert(mode), 32))


def test_cmyk():
    array = decoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), 32, "TIFF")
    assert tuple(array[:, 16, 16]) == (255, 0, 0)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (32, 32), 77),
        Image.new("LA", (32, 32), (77, 255)),
        Image.fromarray(np.full((32, 32), 77 * 256 + 5, np.uint16)),
    ],
    ids=["grey", "grey with alpha", "16 bits"],
)
def test_grey_is_repeated(image):
    assert (decoded(image, 32) == 77).all()


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="32 bits"):
        to_rgb(Image.new("F", (4, 4)))


@pytest.mark.parametrize("shape", [(200, 150), (150, 200)])
def test_a_crop_resizes_the_shorter_side_with_antialiasing_and_keeps_the_centre(shape):
    image = Image.effect_noise(shape, 80).convert("RGB")
    width, height = (round(side * 48 / min(shape)) for side in shape)
    left, top = (width - 48) // 2, (height - 48) // 2
    expected = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 48, top + 48))
    difference = np.moveaxis(np.asarray(expected), -1, 0).astype(int) - decoded(image, 48, fit="crop")
    assert abs(difference).max() <= 2


@pytest.mark.parametrize("shape", [(200, 150), (150, 200), (30, 20), (48, 47)])
def test_a_pad_resizes_the_longer_side_and_fills_the_rest(shape):
    image = Image.effect_noise(shape, 80).convert("RGB")
    width, height = (round(side * 48 / max(shape)) for side in shape)
    left, top = (48 - width) // 2, (48 - height) // 2
    array = good(transform_arrays([np.array(image)], at_size(48, pad_value=(1, 2, 3))))[0]
    inside = np.zeros((48, 48), bool)
    inside[top : top + height, left : left + width] = True
    for channel, value in zip(array, (1, 2, 3), strict=True):
        assert (channel[~inside] == value).all()
    resized = np.moveaxis(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)), -1, 0).astype(int)
    assert abs(resized - array[:, top : top + height, left : left + width]).max() <= 2


@pytest.mark.parametrize("shape", [(200, 150), (30, 40)])
def test_a_squash_resizes_both_sides(shape):
    image = Image.effect_noise(shape, 80).convert("RGB")
    expected = np.moveaxis(np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)), -1, 0).astype(int)
    assert abs(expected - decoded(image, 48, fit="squash")).max() <= 2


@pytest.mark.parametrize("side", [20, 32, 77])
def test_a_square_image_is_the_same_by_all(side):
    """And as torch resizes it, bit for bit."""
    array = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stacked = torch.from_numpy(np.moveaxis(array, -1, 0).copy())[None]
    expected = torch.nn.functional.interpolate(stacked, (32, 32), mode="bicubic", antialias=True)[0].numpy()
    for fit in FITS:
        np.testing.assert_array_equal(decoded(Image.fromarray(array), 32, fit=fit), expected)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("fit", FITS)
def test_lines_of_pixels(fit, shape):
    """No image becomes larger than it has to, and no side vanishes; ``crop`` keeps the middle alone."""
    array = np.zeros((*shape, 3), np.uint8)
    array[-(shape[0] // 3 + 1) :, -(shape[1] // 3 + 1) :] = 255
    (image,) = transform_arrays([array], at_size(16, fit=fit))
    assert image.shape == (3, 16, 16)
    assert (image.max() == 0) == (fit == "crop" and 5000 in shape)


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 3), (16, 16), (16, 16, 3)])
def test_arrays_go_the_same_way_as_files(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (transformed,) = transform_arrays([array], at_size(16))
    np.testing.assert_array_equal(transformed, decoded(Image.fromarray(array), 16))


def test_no_arrays():
    assert list(transform_arrays([], at_size(16))) == []


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("flip", [[monai.transforms.Flip(axis)] for axis in (0, 1)]),
        ("rotate90", [[monai.transforms.Rotate90(turns) for turns in (1, 2, 3)]]),
    ],
)
def test_moves_are_monais(name, moves):
    image = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    with untracked():
        for transform, theirs in zip(AUGMENTATIONS[name], moves, strict=True):
            assert isinstance(transform, RandomMove)
            for number, move in zip(transform.views, [*theirs, lambda same: same], strict=True):
                assert torch.equal(view(image, number), move(image))


def test_draws_are_those_of_monais_random_transforms():
    """Seeded as MONAI's ``Randomizable``, and drawn as ever: what has been trained can be trained again."""
    randomizable = monai.transforms.Randomizable()
    randomizable.set_random_state(derive_seed(7, "augment", 0))
    assert Augmentation(["rotate90"], 7).views(50).tolist() == ((randomizable.R.randint(4, size=50) + 1) % 4).tolist()


def test_every_augmentation_of_the_schema_exists():
    names, _ = get_args(Data.model_fields["augment"].annotation)
    assert set(AUGMENTATIONS) == set(get_args(names))


def some_pixels(count: int, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def drawn_of(names, seed, pixels):
    return augmented(pixels, Augmentation(names, seed).draw(len(pixels)))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentation_is_seeded_stays_in_range_and_changes_images(name):
    images = some_pixels(8, 16)
    before = images.clone()
    first, again, other = (drawn_of([name], seed, images) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, augmented(images, None))
    assert torch.equal(images, before)
    assert type(first) is torch.Tensor
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1


def moved(images: torch.Tensor, name: str) -> torch.Tensor:
    """All (M,B,3,S,S) that the moves of `name` can make of `images`."""
    if name == "rotate90":
        return torch.stack([images.rot90(k, (2, 3)) for k in range(4)])
    return torch.stack([images.flip(axes) for axes in ((), (2,), (3,), (2, 3))])


@pytest.mark.parametrize("name", ["flip", "rotate90"])
def test_each_image_is_moved_by_itself_and_every_move_occurs(name):
    images = some_pixels(64)
    is_move = (moved(augmented(images, None), name) == drawn_of([name], 0, images)).flatten(2).all(dim=2)
    assert (is_move.sum(dim=0) == 1).all()
    assert (is_move.sum(dim=1) > 4).all()


def test_the_views_are_the_eight_symmetries_of_the_square():
    image = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    seen = [view(image, number) for number in range(VIEWS)]
    assert torch.equal(seen[0], image)
    assert torch.equal(seen[1][:, 0, 0], image[:, 0, -1])  # anticlockwise: the top right corner comes to the left
    assert torch.equal(seen[4], image.flip(2))
    assert len({one.numpy().tobytes() for one in seen}) == VIEWS
    assert numbers(torch.stack([view(CORNERS, number) for number in range(VIEWS)])).tolist() == list(range(VIEWS))


@pytest.mark.parametrize(
    ("names", "views"),
    [
        ((), (0,)),
        (("flip",), (0, 2, 4, 6)),
        (("rotate90",), (0, 1, 2, 3)),
        (("flip", "rotate90"), tuple(range(VIEWS))),
        (("rotate90", "flip"), tuple(range(VIEWS))),
        (("rotate90", "flip", "rotate90"), tuple(range(VIEWS))),
    ],
)
def test_the_views_that_are_drawn_are_those_that_the_images_get(names, views):
    """Bit for bit, batch after batch, and no other."""
    assert views_of(names) == views
    moves, draws, occurred = Augmentation(names, 3), Augmentation(names, 3), set()
    for count in (64, 1, 37):
        images = some_pixels(count, 6, count)
        drawn = draws.views(count)
        expected = torch.stack([view(image, int(number)) for image, number in zip(images, drawn, strict=True)])
        assert torch.equal(augmented(images, moves.draw(count)), augmented(expected, None))
        occurred |= set(drawn.tolist())
    assert occurred == set(views)


@pytest.mark.parametrize("names", [("intensity",), ("flip", "intensity"), ("intensity", "rotate90")])
def test_intensity_makes_more_than_views(names):
    assert views_of(names) is None


def test_intensity_scales_and_shifts_each_image():
    images = torch.full((200, 3, 2, 2), 102, dtype=torch.uint8)
    images[:, :, 0] = 51
    changed = drawn_of(["intensity"], 0, images)
    scale = (changed[:, 0, 1, 0] - changed[:, 0, 0, 0]) / 0.2
    shift = changed[:, 0, 1, 0] - scale * 0.4
    for factor, centre, reach in ((scale, 1, 0.2), (shift, 0, 0.1)):
        assert (abs(factor - centre) <= reach + 1e-5).all()
        assert factor.std() > reach / 3


def test_sixteen_bits_by_the_range_of_the_type_or_of_the_image():
    twelve_bits = np.linspace(100, 4000, 64).reshape(8, 8).astype(np.uint16)
    image = Image.fromarray(twelve_bits)
    assert np.asarray(to_rgb(image)).max() == 4000 >> 8
    stretched = np.asarray(to_rgb(image, "image"))[..., 0]
    assert stretched.min() == 0
    assert stretched.max() == 255
    assert np.abs(stretched - (twelve_bits - 100.0) * 255 / 3900).max() <= 0.5
    constant = Image.fromarray(np.full((4, 4), 9, np.uint16))
    assert not np.asarray(to_rgb(constant, "image")).any()
    with pytest.raises(ValueError, match=r"32 bits, or with a sign; data.intensity 'image' would take"):
        to_rgb(Image.fromarray(np.ones((4, 4), np.float32)))
    assert np.asarray(to_rgb(Image.fromarray(np.eye(4, dtype=np.float32)), "image")).max() == 255
