"""Edits the lines of a hand-written catalog file that Kiln owns; every other byte stays, and the result is proven."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import TypeVar

import yaml
from packaging.version import Version

from kiln import errors
from kiln.catalog import records
from kiln.catalog.load import read

R = TypeVar("R", bound=records.Record)

_BY_HAND = "this file is written in a way that only a person can edit: make the change by hand, then ./inv lint"


def with_edition(text: str, release: str, edition: records.Edition) -> str:
    """Return the patch.yaml with this edition, in order of version; its release is no longer `unported`.

    Raises BadInput where the text is no patch.yaml, or cannot be edited without touching what a person wrote.
    """
    before = _read(records.Patch, text)
    unported = tuple(each for each in before.unported if each != release)
    wanted = before.model_copy(update={"editions": {**before.editions, release: edition}, "unported": unported})
    if release in before.unported:
        text = _without_item(text, "unported", release)
    if before.editions.get(release) != edition:
        text = _with_block(text, release, edition)
    return _proven(text, wanted)


def with_upstream_since(text: str, release: str) -> str:
    """Return the patch.yaml with `upstream_since`, below `upstream` where it is new; raises BadInput."""
    wanted = _read(records.Patch, text).model_copy(update={"upstream_since": release})
    top = _entries(_root(text))
    if "upstream_since" in top:
        return _proven(_replaced(text, top["upstream_since"][1], release), wanted)
    at = _line_end(text, _end(text, top["upstream"][1]))
    return _proven(_inserted(text, at, f"upstream_since: {release}"), wanted)


def with_status(text: str, status: str) -> str:
    """Return the patch.yaml with `upstream.status`; raises BadInput."""
    before = _read(records.Patch, text)
    upstream = before.upstream.model_copy(update={"status": status})
    _, node = _entries(_entries(_root(text))["upstream"][1])["status"]
    return _proven(_replaced(text, node, status), before.model_copy(update={"upstream": upstream}))


def with_releases(text: str, specifier: str) -> str:
    """Return the patch.yaml with `applies.releases`; raises BadInput."""
    before = _read(records.Patch, text)
    applies = before.applies.model_copy(update={"releases": specifier})
    _, node = _entries(_entries(_root(text))["applies"][1])["releases"]
    return _proven(_replaced(text, node, f'"{specifier}"'), before.model_copy(update={"applies": applies}))


def with_last(text: str, patch_id: str) -> str:
    """Return the series.yaml with one more patch at the end of its order; raises BadInput."""
    before = _read(records.SeriesOrder, text)
    _, node = _entries(_root(text))["order"]
    if isinstance(node, yaml.SequenceNode) and node.flow_style:
        last = _end(text, node.value[-1]) if node.value else node.start_mark.index + 1
        text = f"{text[:last]}{', ' if node.value else ''}{patch_id}{text[last:]}"
    elif isinstance(node, yaml.SequenceNode) and node.value:
        at = _line_end(text, _end(text, node.value[-1]))
        text = _inserted(text, at, f"{' ' * node.start_mark.column}- {patch_id}")
    return _proven(text, records.SeriesOrder(order=(*before.order, patch_id)))


def _with_block(text: str, release: str, edition: records.Edition) -> str:
    top = _entries(_root(text))
    indent = "  "
    if "editions" not in top:
        return _inserted(text, len(text), "editions:", *_block(release, edition, indent))
    key, node = top["editions"]
    assert isinstance(node, yaml.MappingNode), "the strict loader has read it"
    if not node.value:  # editions: {}
        text = text[: key.end_mark.index] + ":" + text[_end(text, node) :]
        return _inserted(text, _line_end(text, key.end_mark.index), *_block(release, edition, indent))
    if node.flow_style:
        raise errors.BadInput("patch.yaml: editions stand in braces", hint=_BY_HAND)
    entries = _entries(node)
    lines = _block(release, edition, " " * node.start_mark.column)
    if release in entries:
        own, value = entries[release]
        start, end = _line_start(text, own.start_mark.index), _line_end(text, _end(text, value))
        return _inserted(text[:start] + text[end:], start, *lines)
    newer = [each for each in entries if Version(each) > Version(release)]
    older = list(itertools.takewhile(lambda each: each not in newer, entries))
    last = _end(text, entries[older[-1]][1]) if older else key.end_mark.index
    return _inserted(text, _line_end(text, last), *lines)


def _block(release: str, edition: records.Edition, indent: str) -> list[str]:
    lines = [f"{indent}{release}:", f"{indent}  sha256: {edition.sha256}", f"{indent}  files:"]
    for path, hashes in edition.files.items():
        lines.append(f"{indent}    {path}:")
        lines += [f"{indent}      {name}: {sha256}" for name, sha256 in hashes.model_dump(exclude_none=True).items()]
    return lines


def _without_item(text: str, key: str, item: str) -> str:
    """Take one item out of a list at the top; the last one takes the key with it."""
    own, node = _entries(_root(text))[key]
    assert isinstance(node, yaml.SequenceNode)
    values = [child.value for child in node.value]
    n = values.index(item)
    if len(values) == 1:
        return text[: _line_start(text, own.start_mark.index)] + text[_line_end(text, _end(text, node)) :]
    start, end = node.value[n].start_mark.index, node.value[n].end_mark.index
    if not node.flow_style:
        return text[: _line_start(text, start)] + text[_line_end(text, end) :]
    if n + 1 < len(values):
        return text[:start] + text[node.value[n + 1].start_mark.index :]
    return text[: node.value[n - 1].end_mark.index] + text[end:]


def _root(text: str) -> yaml.MappingNode:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise errors.BadInput("the file holds an alias, whose text stands elsewhere", hint=_BY_HAND)
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode), "the strict loader has read it"
    return node


def _entries(node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Return the key and value nodes of a mapping."""
    assert isinstance(node, yaml.MappingNode), "the strict loader has read it"
    return {key.value: (key, value) for key, value in node.value}


def _end(text: str, node: yaml.Node) -> int:
    """Return where the last character of a node ends; the mark of a block lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end + 1


def _replaced(text: str, node: yaml.Node, value: str) -> str:
    return text[: node.start_mark.index] + value + text[_end(text, node) :]


def _inserted(text: str, at: int, *lines: str) -> str:
    """Put whole lines in at the start of a line, or at the end of a text whose last line does not end."""
    newline = "\r\n" if "\r\n" in text else "\n"
    before = text[:at]
    if before and not before.endswith("\n"):
        before += newline
    return before + "".join(line + newline for line in lines) + text[at:]


def _read(model: type[R], text: str) -> R:
    """Read a text as the catalog's loader reads the file."""
    name = "series.yaml" if model is records.SeriesOrder else "patch.yaml"
    with tempfile.TemporaryDirectory(prefix="kiln-edit-") as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode())
        return read(model, path, root=Path(folder))


def _proven(text: str, wanted: R) -> str:
    """Return the text if it says exactly what is wanted."""
    try:
        found = _read(type(wanted), text)
    except errors.BadInput as error:
        raise errors.BadInput(f"the edited file could not be read: {error.message}", hint=_BY_HAND) from error
    if found != wanted:
        raise errors.BadInput("the edited file would not say what was wanted", hint=_BY_HAND)
    return text
