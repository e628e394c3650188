from enum import IntEnum
from typing import NamedTuple

class Bin(NamedTuple):
    low_value: float
    high_value: float
    sample_count: float

class HistogramType(IntEnum):
    STANDARD = 0

class Histogram(NamedTuple):
    hist_type: HistogramType
    bins: list[Bin]
    hist_name: str | None = None
