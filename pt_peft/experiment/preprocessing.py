"""Everything between an image's file and the tensor that the model takes. A trained model carries it."""

from typing import Annotated, Literal

from pydantic import Field

from pt_peft.experiment.sections import Backbone, ChannelMean, Data, Fit, Intensity, Std, TestTimeFlips
from pt_peft.schema import Strict

Level = Annotated[int, Field(ge=0, le=255)]
"""A channel's value in 8 bits."""


class Decoding(Strict):
    """From a file to uint8 (3,S,S), which a site's cache keeps."""

    channels: Literal["RGB"]
    """Grey is repeated, palettes are looked up."""
    intensity: Intensity
    """``data.intensity`` of the experiment."""
    image_size: Annotated[int, Field(ge=1, le=1024)]
    """Side S of the square, pixels."""
    fit: Fit
    """``data.fit`` of the experiment."""
    pad_value: tuple[Level, Level, Level]
    """Red, green and blue beside an image that ``pad`` makes square."""
    interpolation: Literal["bicubic"]
    """How an image is resized."""
    antialias: Literal[True]
    """Whether it is smoothed before it is made smaller."""


class Preprocessing(Strict):
    """From a file to the model's input, and from its logits to those that are evaluated."""

    decoding: Decoding
    """Comes first. Divided by 255, the pixels are in [0, 1]."""
    mean: tuple[ChannelMean, ChannelMean, ChannelMean]
    """Subtracted from each channel of images in [0, 1]."""
    std: tuple[Std, Std, Std]
    """Divides each channel after that."""
    test_time_flips: TestTimeFlips
    """``data.test_time_flips`` of the experiment."""


def preprocessing_of(backbone: Backbone, data: Data) -> Preprocessing:
    """The preprocessing of an experiment with these sections."""
    red, green, blue = (min(255, max(0, round(255 * mean))) for mean in backbone.mean)  # near 0 when normalised
    decoding = Decoding(
        channels="RGB",
        intensity=data.intensity,
        image_size=backbone.image_size,
        fit=data.fit,
        pad_value=(red, green, blue),
        interpolation="bicubic",
        antialias=True,
    )
    return Preprocessing(decoding=decoding, mean=backbone.mean, std=backbone.std, test_time_flips=data.test_time_flips)
