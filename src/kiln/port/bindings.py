"""What a module's names stand for, and whether a changed definition still means the same in another module."""

from __future__ import annotations

import ast
import builtins
import functools
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kiln.port import symbols

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_DEFINED = tuple(f"{each.__name__}(" for each in _Definition.__args__)
_BODIES = ("body", "orelse", "handlers", "finalbody", "cases")


@functools.lru_cache(maxsize=16)
def bound(data: bytes, path: str) -> Mapping[str, frozenset[str]]:
    """Return every name at module level, and by what it is bound there, as text that can be compared."""
    found: dict[str, set[str]] = {}
    for name, how in _bound(symbols.module(data).tree, _package(path)):
        found.setdefault(name, set()).add(how)
    return {name: frozenset(hows) for name, hows in found.items()}


def dotted(path: str) -> str:
    """Return the name of the module that a file is."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: str, name: str) -> str:
    """Return how `bound` writes the import of a name from a file."""
    return f"from {dotted(path)} import {name}"


def kinds(hows: Iterable[str]) -> list[str]:
    """Return what binds a name, of a definition only whether it is a function or a class."""
    return sorted(how.partition("(")[0] if how.startswith(_DEFINED) else how for how in hows)


def unmet(before: ast.AST, after: ast.AST, modules: Modules) -> str:
    """Return the first name that a change, from `before` to `after`, needs and that is another or none there; or ""."""
    old, new = _used(before), _used(after)
    local = set(_stored(after))
    for name in sorted((old | new) - modules.along):
        was, now = modules.pre.get(name), modules.post.get(name)
        if was == now and (name in old or (now is None and (name in local or modules.builtin(name)))):
            continue
        if not modules.same(name):
            return name
    if _package(modules.path) != _package(modules.target):
        return next(iter(sorted(_relative(after) - _relative(before))), "")
    return ""


class Modules:
    """The names of a file before and after an edition and on the new release, and of the file `target` there.

    along: names of what is taken along to that file.
    """

    def __init__(self, path: str, target: str, texts: tuple[bytes, bytes, bytes, bytes], along: Iterable[str]) -> None:
        pre, post, theirs, there = texts
        self.path, self.target = path, target
        self.pre, self.post, self.theirs = (bound(data, path) for data in (pre, post, theirs))
        self.there = bound(there, target)
        self.along = frozenset(along)

    def builtin(self, name: str) -> bool:
        return hasattr(builtins, name) and name not in self.there

    def same(self, name: str) -> bool:
        """Say whether a name stands for the same in both files: bound by the same words, or taken from the other."""
        wanted, found = self.post.get(name, frozenset()), self.there.get(name, frozenset())
        if name in self.theirs and found == {imported(self.path, name)}:
            return True
        plain = all(how.startswith("import ") for how in found)
        return bool(wanted) and (wanted == found or (plain and wanted <= found))


def _bound(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    for node in (node for field in _BODIES for node in getattr(tree, field, ()) or ()):
        if isinstance(node, _Definition):
            yield node.name, ast.dump(node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], f"import {alias.name} as {alias.asname}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"from {_source(node, package)} import {alias.name}"
        else:
            heads = [value for field, value in ast.iter_fields(node) if field not in _BODIES]
            text = " ".join(ast.dump(part) for part in _trees(heads))
            yield from ((name, f"{type(node).__name__}: {text}") for name in _assigned(heads))
            yield from _bound(node, package)


def _trees(values: Iterable[object]) -> Iterator[ast.AST]:
    for value in values:
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST))


def _assigned(values: Iterable[object]) -> Iterator[str]:
    for node in (node for tree in _trees(values) for node in ast.walk(tree)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id


def _source(node: ast.ImportFrom, package: str) -> str:
    """Return the module that an import names, a relative one in full."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _package(path: str) -> str:
    return ".".join(PurePosixPath(path).parts[:-1])


def _used(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _stored(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a definition binds itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, _Definition | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            yield node.name or ""


def _relative(tree: ast.AST) -> set[str]:
    """Return the relative imports within a definition."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
