"""How the reports name a verdict, and how they show text that they do not trust."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from kiln.drift.records import Verdict

_HIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, kw_only=True)
class Word:
    """`short` has at most four letters; verdicts of one `tone` have one colour."""

    sign: str
    long: str
    short: str
    tone: str
    meaning: str


WORDS = {
    Verdict.CLEAN: Word(sign="✓", long="clean", short="ok", tone="good", meaning="an edition fits, by recorded hash"),
    Verdict.NOT_NEEDED: Word(
        sign="·", long="not needed", short="·", tone="none", meaning="outside the releases that the patch applies to"
    ),
    Verdict.MERGED: Word(sign="↑", long="merged", short="merg", tone="up", meaning="the release has the change itself"),
    Verdict.MERGED_DIFFERENT: Word(
        sign="≠", long="merged, differs", short="mer~", tone="up", meaning="the release has it in other words"
    ),
    Verdict.WITHDRAWN: Word(
        sign="↩", long="withdrawn", short="with", tone="up", meaning="upstream had it and took it back"
    ),
    Verdict.OFFSET: Word(sign="↕", long="offset", short="offs", tone="warn", meaning="it fits, but on other lines"),
    Verdict.MOVED: Word(sign="→", long="moved", short="move", tone="warn", meaning="its place is in another file"),
    Verdict.AMBIGUOUS: Word(
        sign="⇉", long="ambiguous", short="ambi", tone="warn", meaning="it fits in more than one place"
    ),
    Verdict.CONFLICT: Word(sign="✕", long="conflict", short="conf", tone="bad", meaning="the lines are not there"),
    Verdict.UNKNOWN: Word(
        sign="?", long="unknown", short="?", tone="unknown", meaning="could not be looked at, which is not no drift"
    ),
}


def visible(text: str) -> str:
    """Return text with every character that cannot be seen, such as a bidi mark, named; line ends and tabs stay."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # nearly all text is, and this is quick
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else f"⟦U+{ord(c):04X}⟧" for c in text)


def line(text: str, most: int = 2000) -> str:
    """Return text as one visible line of at most `most` characters."""
    whole = " ".join(visible(text).split())
    return whole if len(whole) <= most else f"{whole[: most - 2]} …"


def many(count: int, one: str, more: str = "") -> str:
    """Return "1 release", "2 releases"."""
    return f"{count} {one if count == 1 else more or f'{one}s'}"
