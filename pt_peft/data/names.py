"""Names as people and spreadsheets write them: which are the same, and which say that nothing is known."""

import re
import unicodedata
from collections.abc import Sequence

_AROUND = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")
_UNKNOWN = frozenset(
    (
        *("", "-", "--", "\u2013", "\u2014", ".", "?"),
        *("n/a", "#n/a", "n.a.", "na", "<na>", "nan", "nil", "none", "null"),
        *("unk", "unknown", "missing", "undefined", "not available", "not known"),
    )
)


def clean(text: str) -> str:
    """`text` in Unicode's composed form (NFC) and without blanks around it: ``P7`` and ``P7 `` are one patient."""
    return text.strip() if text.isascii() else _AROUND.sub("", unicodedata.normalize("NFC", text))


def name_order(names: Sequence[str]) -> list[int]:
    """Places of `names` in their alphabetic order."""
    return sorted(range(len(names)), key=names.__getitem__)


def says_unknown(text: str) -> bool:
    """Whether a cell is empty or says that its value is not known: ``NA``, ``nan``, ``-``, ``unknown`` …."""
    return clean(text).casefold() in _UNKNOWN


def bare(text: str) -> str:
    """The letters and digits of `text`, without case and accents: equal for ``Site 2`` and ``site-2``."""
    return "".join(one for one in unicodedata.normalize("NFKD", text).casefold() if one.isalnum())
