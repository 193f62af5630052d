"""What the config classes of a release say of their fields: type, default, and the values that a field takes."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_DEPTH = 8  # of aliases of aliases, which may go in a circle
_BACKENDS = "BackendEnum"  # classes whose members are values of flags, by name
_SCALARS = frozenset({"bool", "int", "str", "float", "None", "bytes", "object"})


class Unreadable(Exception):
    """Sources whose shape is not known, so that nothing is claimed about them."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one flag or environment variable takes; a default or choices that are not known are never compared.

    default: as a person types it, None where there is none or it is not a literal. choices: () for any value.
    keys: whether dotted keys may follow the name: those of a class (`type`), any, none, or not known. switch: it may
    stand without a value, and with "both" there is a `--no-` form. asked: vLLM asks whether the variable is set at all,
    so that its default is not the same as none.
    """

    default: str | None = None
    choices: tuple[str, ...] = ()
    keys: Literal["none", "fixed", "any", "unknown"] = "none"
    switch: Literal["no", "one", "both"] = "no"
    type: str = ""
    asked: bool = False


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a class as written; `checked`: a validator sees the value before its type does."""

    name: str
    annotation: ast.expr
    default: ast.expr | None
    settable: bool
    checked: bool


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes and the type aliases of all files read, by name."""

    definitions: dict[str, ast.ClassDef]
    aliases: dict[str, ast.expr]
    known: dict[str, dict[str, Field]] = dataclass_field(default_factory=dict)

    def bases(self, name: str) -> Iterator[str]:
        """Yield a class and those it is made from, the nearest first."""
        waiting, seen = [name], set[str]()
        while waiting:
            at = waiting.pop(0)
            if at not in seen and at in self.definitions:
                seen.add(at)
                yield at
                waiting += [ast.unparse(base) for base in self.definitions[at].bases]

    def fields(self, name: str) -> dict[str, Field]:
        """Return the fields of a class and its bases; {} for a class that is in no file."""
        if name in self.known:
            return self.known[name]
        found = self.known.setdefault(name, {})
        for base in reversed(tuple(self.bases(name))):
            checked = set(_checked(self.definitions[base]))
            for node in self.definitions[base].body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    key = node.target.id
                    if not ast.unparse(node.annotation).startswith("ClassVar"):
                        found[key] = Field(
                            name=key,
                            annotation=node.annotation,
                            default=node.value,
                            settable=not _is(node.value, "init", value=False),
                            checked=bool(checked & {key, "*"}),
                        )
        return found

    def setting(self, field: Field, *, key: bool = False) -> Setting:
        """Return what the command line makes of a field, as vLLM's `get_kwargs` does.

        As the key of another flag it is not looked at by argparse, so a validator may take more than the type does.
        """
        leaves = list(self._leaves(field.annotation))
        types = {ast.unparse(leaf) for leaf in leaves}
        config = next((name for name in sorted(types) if self._is_config(name)), "")
        switch: Literal["no", "one", "both"] = "no"
        if "bool" in types:
            switch = "one" if types == {"bool", "str", "None"} else "both"
        return Setting(
            default=self.literal(field.default),
            choices=self._choices(leaves, checked=key and field.checked),
            keys=_keys(types, config),
            switch=switch,
            type=config,
        )

    def literal(self, node: ast.expr | None, depth: int = 0) -> str | None:
        """Return a default as a person types it; None for None and for all that is not a literal."""
        if node is None or depth > _MAX_DEPTH:
            return None
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Field", "field"}:
            given = [word.value for word in node.keywords if word.arg == "default"] or node.args[:1]
            return self.literal(given[0], depth + 1) if given else None
        if isinstance(node, ast.Attribute) and (owner := ast.unparse(node.value)) in self.definitions:
            declared = self.fields(owner).get(node.attr)
            inherited = self.literal(declared.default, depth + 1) if declared else None
            return node.attr if owner.endswith(_BACKENDS) else inherited
        return _written(node)

    def _leaves(self, node: ast.expr, depth: int = 0) -> Iterator[ast.expr]:
        """Yield the types of a union, aliases and quotes taken away."""
        if isinstance(node, ast.Name) and node.id not in self.definitions:
            inner = [self.aliases[node.id]] if node.id in self.aliases else []
        else:
            inner = _inside(node)
        if not inner or depth > _MAX_DEPTH:
            yield node
            return
        for part in inner:
            yield from self._leaves(part, depth + 1)

    def _choices(self, leaves: Iterable[ast.expr], *, checked: bool) -> tuple[str, ...]:
        """Return the values of a Literal or of an enumeration of backends; () where others may be taken too."""
        found: list[str] = []
        for leaf in leaves:
            name = ast.unparse(leaf)
            if name == "None":
                continue
            if name.endswith(_BACKENDS) and name in self.definitions:
                # both the member and "auto", which stands for none, are taken, in any case
                found += ["auto", *_members(self.definitions[name])]
            elif isinstance(leaf, ast.Subscript) and ast.unparse(leaf.value) == "Literal" and not checked:
                items = leaf.slice.elts if isinstance(leaf.slice, ast.Tuple) else [leaf.slice]
                if not all(isinstance(item, ast.Constant) for item in items):
                    return ()
                found += [str(item.value) for item in items if isinstance(item, ast.Constant)]
            else:
                return ()
        return tuple(found)

    def _is_config(self, name: str) -> bool:
        definition = self.definitions.get(name)
        return bool(definition and definition.decorator_list and self.fields(name))


def index(trees: Iterable[ast.Module]) -> Classes:
    """Return the classes and aliases of modules, where of one name the first counts."""
    definitions: dict[str, ast.ClassDef] = {}
    aliases: dict[str, ast.expr] = {}
    for node in (node for tree in trees for node in tree.body):
        if isinstance(node, ast.ClassDef):
            definitions.setdefault(node.name, node)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            if isinstance(node.value, ast.Subscript | ast.BinOp):
                aliases.setdefault(node.targets[0].id, node.value)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias" and node.value:
            aliases.setdefault(ast.unparse(node.target), node.value)
    return Classes(definitions=definitions, aliases=aliases)


def _keys(types: set[str], config: str) -> Literal["none", "fixed", "any", "unknown"]:
    if any(name.partition("[")[0] in {"dict", "Dict", "Mapping", "Any"} for name in types):
        return "any"
    if config:
        return "fixed"
    plain = {"Literal", "list", "set", "tuple", "type", "Callable"}
    unknown = [name for name in types - _SCALARS if name.partition("[")[0] not in plain]
    return "unknown" if any(not name.endswith("Enum") for name in unknown) else "none"


def _inside(node: ast.expr) -> list[ast.expr]:
    """Return the parts of a union or of a wrapped or quoted type; [] for any other."""
    inner: list[ast.expr] = []
    match node:
        case ast.Constant(value=str(text)):
            inner = _quoted(text)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            inner = [left, right]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inside):
            inner = [inside, ast.Constant(value=None)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=elements)):
            inner = elements
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=elements)):
            inner = elements[:1]
        case ast.Subscript(value=ast.Name(id="InitVar" | "SkipValidation"), slice=inside):
            inner = [inside]
    return inner


def _written(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(value=bool(value)):
            return str(value).lower()
        case ast.Constant(value=str() | int() | float() as value):
            return str(value) or None
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return f"-{value}"
    return None


def _quoted(text: str) -> list[ast.expr]:
    try:
        return [ast.parse(text, mode="eval").body]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _checked(definition: ast.ClassDef) -> Iterator[str]:
    """Yield the fields that a validator changes before their type is looked at."""
    for node in definition.body:
        for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != "field_validator":
                continue
            if not _is(decorator, "mode", value="after"):
                yield from (str(item.value) for item in decorator.args if isinstance(item, ast.Constant))


def _members(definition: ast.ClassDef) -> Iterator[str]:
    for node in definition.body:
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _is(node: ast.expr | None, keyword: str, *, value: object) -> bool:
    words = node.keywords if isinstance(node, ast.Call) else []
    return any(
        word.arg == keyword and isinstance(word.value, ast.Constant) and word.value.value == value for word in words
    )
