"""Builds HTML in which text of the data is only ever text."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING
from urllib.parse import quote

from kiln.drift.words import visible

if TYPE_CHECKING:
    from collections.abc import Iterable


class Html(str):
    """Text that is markup already; every other string is escaped where it meets markup."""

    __slots__ = ()


def text(value: str) -> Html:
    """Return a string of the data as markup that shows it, also what cannot be seen."""
    return value if isinstance(value, Html) else Html(html.escape(visible(value)))


def tag(name: str, *children: str, **attributes: str | bool) -> Html:
    """Return an element; `class_` is written `class`, and an attribute that is False or "" is left out."""
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value)
    shown = "".join(f" {key}" if value is True else f' {key}="{text(str(value))}"' for key, value in given)
    return Html(f"<{name}{shown}>{''.join(map(text, children))}</{name}>")


def box(name: str) -> Html:
    """Return a checkbox, which is an element without an end."""
    return Html(f'<input type="checkbox" id="{text(name)}">')


def join(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def fragment(key: str) -> str:
    """Return the link to the element whose id is `key`."""
    return f"#{quote(visible(key), safe='@/:+~')}"
