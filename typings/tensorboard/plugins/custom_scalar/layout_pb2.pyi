from collections.abc import Iterable
from typing import Self

class MultilineChartContent:
    tag: list[str]
    def __init__(self, *, tag: Iterable[str]) -> None: ...

class Chart:
    title: str
    multiline: MultilineChartContent
    def __init__(self, *, title: str, multiline: MultilineChartContent) -> None: ...

class Category:
    title: str
    chart: list[Chart]
    def __init__(self, *, title: str, chart: Iterable[Chart]) -> None: ...

class Layout:
    category: list[Category]
    def __init__(self, *, category: Iterable[Category]) -> None: ...
    def SerializeToString(self) -> bytes: ...
    @classmethod
    def FromString(cls, s: bytes) -> Self: ...
