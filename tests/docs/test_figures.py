"""Measured figures come from benchmark/results, by a call; a decimal number in a page's prose would be one by hand."""

import re

import pytest
from pages import DOCS, pages, prose

import reliability_figure
import soak_figure

DECIMAL = re.compile(r"(?<![\w.:/\-\u2013])[-+±]?\d+\.\d+(?![\w.]*\d)")
VERSIONED = re.compile(r"(?:Python|FLARE|NVFlare|Flower|TLS|Apache|PyTorch|CUDA|Material|arXiv:?)\s?$")


def written_by_hand(text: str) -> list[str]:
    """Decimal numbers of a page's prose that are no version."""
    words = prose(text)
    return [one.group() for one in DECIMAL.finditer(words) if not VERSIONED.search(words[: one.start()])]


@pytest.mark.parametrize(
    "page", [one for one in pages() if DOCS in one.parents], ids=lambda one: str(one.relative_to(DOCS))
)
def test_no_figure_is_written_by_hand(page):
    assert written_by_hand(page.read_text(encoding="utf-8")) == []


def test_what_counts_as_written_by_hand():
    text = "LoRA has 0.842. Python 3.11, FLARE 2.9.0, `0.05` and {{ result('a', 'b') }} may stay; 54.2 % may not."
    assert written_by_hand(text) == ["0.842", "54.2"]


def test_the_soaks_figure_is_drawn_from_its_result():
    assert soak_figure.FIGURE.read_text(encoding="utf-8") == soak_figure.draw()


def test_the_reliability_figure_is_drawn_from_its_result():
    assert reliability_figure.FIGURE.read_text(encoding="utf-8") == reliability_figure.draw()
