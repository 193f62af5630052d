"""Prints what differs between two images; names and texts out of images are shown without control characters."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from kiln import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiln.image.diff.compare import Change, Diff, FileChange, Side

_MB = 1_000_000
_WIDE = 60
_FEW = 20
_SECTIONS = ("pins", "patches", "python", "debian", "settings", "environment", "labels")


def show_diff(found: Diff, *, files: bool, json: bool) -> None:
    """Print a table for each kind of thing that differs; files are counted where there are many."""
    if json:
        print(report.as_json(asdict(found)))
        return
    print(_layers(found))
    for name in _SECTIONS:
        changes: Sequence[Change] = getattr(found, name)
        if changes:
            shown = changes if files else changes[:_FEW]
            rows = [(_plain(each.what), _value(each.a), _value(each.b)) for each in shown]
            print(f"\n{report.table((name, 'A', 'B'), rows)}")
            if len(shown) < len(changes):
                print(f"and {len(changes) - len(shown)} more {name}: the same command with --files")
    print()
    if not found.files:
        print("no file differs")
        return
    counts = Counter(each.how for each in found.files)
    if files or len(found.files) <= _FEW:
        print(report.table(("file", "how", "A", "B"), [_file(each) for each in found.files]))
    print("files: " + ", ".join(f"{count} {how}" for how, count in sorted(counts.items())))
    if found.shared_layers:
        print("the shared layers were not read, so what one image wrote may be new or changed")
    if not files and len(found.files) > _FEW:
        print("each of them: the same command with --files")


def _layers(found: Diff) -> str:
    sides = [("A", found.a), ("B", found.b)]
    whole = [(letter, _plain(side.name), side.digest, *_size(side)) for letter, side in sides]
    text = report.table(("", "image", "digest", "MB", "layers"), whole)
    text += f"\nshared: the lowest {found.shared_layers} layers, {found.shared_bytes / _MB:.1f} MB"
    own = [
        (letter, str(layer.number), f"{layer.size / _MB:.1f}", layer.digest[:19], _plain(layer.made_by)[:_WIDE])
        for letter, side in sides
        for layer in side.layers
    ]
    return f"{text}\n\n{report.table(('', 'own layer', 'MB', 'digest', 'made by'), own)}" if own else text


def _size(side: Side) -> tuple[str, str]:
    return f"{side.size / _MB:.1f}", str(side.layer_count)


def _file(change: FileChange) -> tuple[str, str, str, str]:
    a, b = ("-" if each is None else _entry(each.sha256, each.size, each.link) for each in (change.a, change.b))
    same_bytes = change.a and change.b and change.a.sha256 == change.b.sha256
    modes = f" ({change.a.mode} -> {change.b.mode})" if same_bytes and change.a and change.b else ""
    return _plain(change.path), change.how + modes, a, b


def _entry(sha256: str, size: int, link: str) -> str:
    return f"-> {_plain(link)}" if link else f"{sha256[:12]} {size} B"


def _value(text: str | None) -> str:
    if text is None:
        return "-"
    plain = _plain(text)
    return plain if len(plain) <= _WIDE else f"{plain[: _WIDE - 3]}..."


def _plain(text: str) -> str:
    """Return text that no terminal obeys."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
