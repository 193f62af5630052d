"""Where a line of a Python file stands: in which function, class, block and statement, by its syntax tree."""

from __future__ import annotations

import ast
import functools
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kiln.port import lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_LATER = {"orelse": "else", "finalbody": "finally"}
_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Step:
    """A definition by name, or a block or statement of several lines by the text of its first one.

    It is number `nth` of `of` with that name in the same place.
    """

    name: str
    nth: int
    of: int
    definition: bool


@dataclass(frozen=True)
class Definition:
    """A function or class: its lines, counted from 0, decorators included, end excluded."""

    first: int
    last: int


class Module:
    """The syntax tree of a file; `problem` says why there is none."""

    def __init__(self, data: bytes) -> None:
        self.lines = lines.split(data)
        self.problem = ""
        self.tree = ast.Module(body=[], type_ignores=[])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if data.count(b"\r") != data.count(b"\r\n"):
                    raise ValueError("a carriage return within a line")  # Python counts it as a line
                self.tree = ast.parse(data)
        except _BROKEN as error:
            self.problem = _said(error)

    @functools.cached_property
    def definitions(self) -> Mapping[str, tuple[Definition, ...]]:
        """Return every function and class by its qualified name, in order."""
        found: dict[str, list[Definition]] = {}
        for name, node in _definitions(self.tree, ""):
            found.setdefault(name, []).append(Definition(_first(node) - 1, node.end_lineno or node.lineno))
        return {name: tuple(places) for name, places in found.items()}

    def compile_problem(self, path: str) -> str:
        """Say why the module does not compile, "" if it does; some errors are none of syntax."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(self.tree, path, "exec", dont_inherit=True)
        except _BROKEN as error:
            return _said(error)
        return self.problem

    def path(self, line: int) -> tuple[Step, ...]:
        """Return what a line stands in, outermost first; the first line of a block or statement is not inside it."""
        steps: list[Step] = []
        node: ast.AST = self.tree
        number, above = line + 1, 0
        while True:
            children = _children(node)
            inside = next((each for each in children if each.first <= number <= each.last), None)
            if inside is None or (not inside.definition and inside.head >= number):
                return tuple(steps)
            if inside.definition or inside.head != above:
                name = self._name(inside)
                alike = [each for each in children if self._name(each) == name]
                steps.append(Step(name, alike.index(inside) + 1, len(alike), inside.definition))
            node, above = inside.node, inside.head

    def text(self, name: str) -> lines.Lines:
        """Return the lines of a definition, none if there is not exactly one of that name."""
        places = self.definitions.get(name, ())
        return self.lines[places[0].first : places[0].last] if len(places) == 1 else ()

    def node(self, name: str) -> ast.AST | None:
        """Return the tree of a definition, None if there is not exactly one of that name."""
        nodes = [node for each, node in _definitions(self.tree, "") if each == name]
        return nodes[0] if len(nodes) == 1 else None

    def _name(self, child: _Child) -> str:
        return child.name or self.lines[child.head - 1].decode("utf-8", "backslashreplace").strip()


@functools.lru_cache(maxsize=16)
def module(data: bytes) -> Module:
    return Module(data)


def qualified(path: tuple[Step, ...]) -> str:
    """Return the qualified name of the innermost definition, "" at module level."""
    return ".".join(step.name for step in path if step.definition)


def shown(path: tuple[Step, ...]) -> str:
    """Return a path for a person: the qualified name, and the blocks within."""
    blocks = [step.name[:60] for step in path if not step.definition]
    name = qualified(path) or "the module's top level"
    twins = [f"{step.nth} of {step.of}" for step in path if step.definition and step.of > 1]
    return " > ".join([f"{name} ({', '.join(twins)})" if twins else name, *blocks])


def holders(name: str, wanted: lines.Lines, files: Mapping[str, bytes]) -> dict[str, float]:
    """Return the files that hold a definition of this qualified name, and how much of it is the same: 0 to 1."""
    parts = [part.encode() for part in name.split(".")]
    words = [re.compile(rb"\b(?:def|class)\s+" + re.escape(part) + rb"\b") for part in parts]
    found = {}
    for path, data in files.items():
        # the plain search first: nearly all files end there, and it takes a tenth of the time
        if all(part in data for part in parts) and all(word.search(data) for word in words):
            tree = module(data)
            if places := tree.definitions.get(name, ()):
                texts = (tree.lines[place.first : place.last] for place in places)
                found[path] = max(lines.likeness(wanted, text) for text in texts)
    return found


@dataclass(frozen=True)
class _Child:
    """A part of a node that has lines of its own, counted from 1: `head` is the line that names it."""

    node: ast.AST
    first: int
    head: int
    last: int
    name: str = ""

    @property
    def definition(self) -> bool:
        return isinstance(self.node, _Definition)


@dataclass(frozen=True)
class _Arm(ast.AST):
    """The statements after `else` or `finally`."""

    statements: tuple[ast.stmt, ...]


def _children(node: ast.AST) -> list[_Child]:
    """Return the parts of a node that take several lines, and every definition."""
    found: list[_Child] = []
    for field, value in _fields(node):
        values: list[Any] = value if isinstance(value, list) else [value]
        if (arm := _LATER.get(field)) and isinstance(value, list) and value and not _is_elif(value):
            first, last = _first(value[0]), value[-1].end_lineno or value[-1].lineno
            found.append(_Child(_Arm(tuple(value)), first, first - 1, last, arm))
        else:
            found.extend(part for each in values for part in _parts(each))
    return found


def _parts(node: object) -> Iterator[_Child]:
    if isinstance(node, _Definition):
        yield _Child(node, _first(node), node.lineno, node.end_lineno or node.lineno, node.name)
    elif isinstance(node, ast.match_case):
        yield _Child(node, node.pattern.lineno, node.pattern.lineno, node.body[-1].end_lineno or 0)
    elif isinstance(node, ast.JoinedStr):
        return  # Python 3.11 does not say where its parts stand
    elif isinstance(node, ast.AST) and (first := getattr(node, "lineno", 0)):
        if (last := getattr(node, "end_lineno", 0)) > first:
            yield _Child(node, first, first, last)
    elif isinstance(node, ast.AST):
        yield from _children(node)


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    if isinstance(node, _Arm):
        yield "body", list(node.statements)
    else:
        yield from ast.iter_fields(node)


def _is_elif(statements: list[ast.AST]) -> bool:
    """Say whether `else` holds nothing but an `if`: as `elif` has no line of its own, both are named by that `if`."""
    return len(statements) == 1 and isinstance(statements[0], ast.If)


def _first(node: ast.AST) -> int:
    """Return the line that a statement begins on, decorators included."""
    decorators = node.decorator_list if isinstance(node, _Definition) else []
    return min(int(getattr(each, "lineno", 1)) for each in (node, *decorators))


def _definitions(node: ast.AST, above: str) -> Iterator[tuple[str, _Definition]]:
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, field, ()) or ():
            if isinstance(child, _Definition):
                name = f"{above}.{child.name}" if above else child.name
                yield name, child
                yield from _definitions(child, name)
            elif not isinstance(child, ast.expr):
                yield from _definitions(child, above)


def _said(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    return str(error) or type(error).__name__
