"""Checks each flag, environment variable and parser of the recipes against what each release takes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from packaging.version import InvalidVersion, Version

from kiln.drift.fields import Setting
from kiln.drift.records import RecipeFact
from kiln.recipe import serve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kiln.catalog import Catalog, records
    from kiln.drift.names import Kind, Names

# envs.py registers these alone; NCCL_..., TORCH_... and the like are read by others
_OURS = "VLLM_"
_PARSERS: dict[str, Kind] = {
    "tool-call-parser": "tool parser",
    "reasoning-parser": "reasoning parser",
    "structured-outputs-config.reasoning_parser": "reasoning parser",
}
_NEAR = 0.7  # how much alike two names must be that one may be the other's new name
_LIKE = 0.8  # or its right spelling

FactKind = Literal["flag", "environment", "parser"]
Problem = Literal["unknown", "removed", "renamed", "late", "default", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class _Use:
    """One flag or variable in one layer of a recipe; `value` is None for a switch, "" where a node decides it."""

    kind: Literal["flag", "environment"]
    name: str
    value: str | None
    origin: str

    @property
    def plain(self) -> str:
        """The name as vLLM's parser compares it: `_` is `-` before the first dot only."""
        if self.kind == "environment":
            return self.name
        head, dot, keys = self.name.removeprefix("--").partition(".")
        return head.replace("_", "-") + dot + keys


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is looked up in each release: a name, or (`value`) one value of a flag or variable.

    names: `Names` holds it under these; parser: the registry that a value is looked up in.
    """

    kind: FactKind
    plain: str
    shown: str
    origin: tuple[str, ...]
    values: tuple[str | None, ...] = ()
    value: str | None = None
    parser: Kind | None = None

    @property
    def flag(self) -> str:
        """The name as the recipe writes it, without a value."""
        return self.shown.partition(" ")[0]

    @property
    def key(self) -> str:
        return self.plain if self.value is None else self.value if self.parser else _folded(self.value)

    @property
    def source(self) -> Kind:
        return self.parser or ("environment" if self.kind == "environment" else "flag")


def check(
    catalog: Catalog, columns: Sequence[tuple[str, Names | str]], versions: Mapping[str, str] | None = None
) -> tuple[RecipeFact, ...]:
    """Return the facts of all recipes on each column, columns in order of release; text: why one cannot be read.

    A column below a recipe's `min_vllm_version` gives no fact, but tells what was there before. Raises BadInput for
    words of a recipe that are no flags. versions: what a column that is not named like a release counts as.
    """
    counted = versions or {}
    recipes = [(recipe, tuple(_subjects(recipe))) for recipe in catalog.recipes.values()]
    found: list[RecipeFact] = []
    for at, (column, names) in enumerate(columns):
        for recipe, subjects in recipes:
            version = counted.get(column, column)
            if not _below(version, recipe.model.min_vllm_version):
                facts = _Facts(model=recipe.model.model_id, columns=columns, at=at)
                late = [one for one in subjects if _below(version, recipe.args_since.get(one.flag, "0"))]
                given = [one for one in subjects if one not in late]
                found += [facts.unread(names)] if isinstance(names, str) else facts.of(given, names)
                found += [] if isinstance(names, str) else facts.late(late, names)
    return tuple(found)


def _below(column: str, least: str) -> bool:
    try:
        return Version(column) < Version(least)
    except InvalidVersion:
        return False  # a ref or an image: no number to compare


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Judges the subjects of one recipe on the column `at`."""

    model: str
    columns: Sequence[tuple[str, Names | str]]
    at: int

    @property
    def column(self) -> str:
        return self.columns[self.at][0]

    def unread(self, why: str) -> RecipeFact:
        says = f"nothing of the recipe was checked against {self.column}: {why}"
        return RecipeFact(
            model=self.model,
            column=self.column,
            kind="flag",
            name="sources",
            problem="unreadable",
            says=says,
            origin=(),
        )

    def of(self, subjects: Sequence[_Subject], names: Names) -> Iterator[RecipeFact]:
        for kind, why in sorted(names.unread.items()):
            held = [subject for subject in subjects if subject.source == kind]
            if held:
                origin = tuple(dict.fromkeys(chain.from_iterable(subject.origin for subject in held)))
                whole = _Subject(kind=held[0].kind, plain=kind, shown=f"{kind}s", origin=origin)
                yield self._fact(whole, "unreadable", f"none of them was checked against {self.column}: {why}")
        for subject in subjects:
            if subject.source not in names.unread and (fact := self._judge(subject, names)):
                yield fact

    def late(self, subjects: Sequence[_Subject], names: Names) -> Iterator[RecipeFact]:
        """Yield the flags that `args_since` keeps from a release which takes them."""
        for subject in subjects:
            taken = _taken(subject, names)
            if subject.value is None and isinstance(taken, frozenset) and subject.key in taken:
                yield self._fact(subject, "late", f"{self.column} takes {subject.shown}, and args_since leaves it out")

    def _judge(self, subject: _Subject, names: Names) -> RecipeFact | None:
        taken = _taken(subject, names)
        if taken is None:
            return None
        if isinstance(taken, str):
            return self._fact(subject, "unreadable", f"{self.column}: {taken}")
        if subject.key in taken:
            return self._is_default(subject, names)
        before = self._before(subject)
        if not before:
            near = _spelled(_nearest(subject.key, taken, _LIKE), subject, names)
            return self._fact(subject, "unknown", self._unknown(subject), near=near)
        since, had = before
        if near := _spelled(_nearest(subject.key, taken - had, _NEAR), subject, names):
            says = f"{since} had {subject.shown}; {self.column} does not, but has the new {_shown(subject, near)}"
            return self._fact(subject, "renamed", says, near=near)
        return self._fact(subject, "removed", f"{since} had {subject.shown}; {self.column} does not")

    def _unknown(self, subject: _Subject) -> str:
        later = (column for column, names in self.columns[self.at + 1 :] if _has(subject, names))
        first = next(later, "")
        where = f"{first} is the first that has it" if first else "and no release looked at has it"
        return f"{self.column} does not have {subject.shown}; {where}"

    def _before(self, subject: _Subject) -> tuple[str, frozenset[str]] | None:
        """Return the last column before this one that takes the subject, and what it takes."""
        for column, names in reversed(self.columns[: self.at]):
            taken = None if isinstance(names, str) else _taken(subject, names)
            if isinstance(taken, frozenset) and subject.key in taken:
                return column, taken
        return None

    def _is_default(self, subject: _Subject, names: Names) -> RecipeFact | None:
        """Say that a value is the release's own; not where it is set against another layer, or its absence counts."""
        known = names.environment if subject.kind == "environment" else names.flags
        setting = known.get(subject.plain)
        if subject.value is not None or not setting or setting.default is None or setting.asked:
            return None
        if not all(_same("true" if value is None else value, setting.default) for value in subject.values):
            return None
        value = subject.values[0]
        words = subject.shown if value is None else _valued(subject.kind, subject.shown, value)
        says = f"{words} is the default that {self.column}'s sources name"
        if value not in {None, setting.default}:
            says += f", as {setting.default}"
        return self._fact(subject, "default", says, known=True)

    def _fact(
        self, subject: _Subject, problem: Problem, says: str, *, near: str = "", known: bool = False
    ) -> RecipeFact:
        return RecipeFact(
            model=self.model,
            column=self.column,
            kind=subject.kind,
            name=subject.shown,
            problem=problem,
            says=says,
            origin=subject.origin,
            near=_shown(subject, near) if near else "",
            known=known,
        )


def _uses(recipe: records.Recipe) -> Iterator[_Use]:
    """Yield what every layer sets, opt-in features too, under the names that `kiln.recipe.serve` gives the layers."""
    yield from _of("model", recipe.model.base_args, recipe.model.base_env)
    for name, feature in recipe.features.items():
        yield from _of(f"features.{name}", feature.args, {})
    layers: dict[str, records.Layer] = {}
    for name, variant in recipe.variants.items():
        layers[f"variants.{name}"] = variant
        layers |= {f"variants.{name}.hardware_overrides.{at}": one for at, one in variant.hardware_overrides.items()}
    layers |= {f"hardware_overrides.{at}": one for at, one in recipe.hardware_overrides.items()}
    for origin, layer in layers.items():
        yield from _of(origin, layer.extra_args, layer.extra_env)
    yield _Use(kind="flag", name="--tensor-parallel-size", value="", origin="strategy.single_node_tp")


def _of(origin: str, args: Sequence[str], env: dict[str, str]) -> Iterator[_Use]:
    for flag in serve.flags_of(args, origin):
        yield _Use(kind="flag", name=flag.name, value=flag.value, origin=origin)
    for name, value in env.items():
        if name.startswith(_OURS):
            yield _Use(kind="environment", name=name, value=value, origin=origin)


def _subjects(recipe: records.Recipe) -> Iterator[_Subject]:
    """Yield each name once, with all layers that set it, and after it each value that is given to it."""
    uses: dict[tuple[str, str], list[_Use]] = {}
    for use in _uses(recipe):
        uses.setdefault((use.kind, use.plain), []).append(use)
    for same in uses.values():
        first = same[0]
        yield _Subject(
            kind=first.kind,
            plain=first.plain,
            shown=first.name,
            origin=_origins(same),
            values=tuple(dict.fromkeys(use.value for use in same)),
        )
        for value in dict.fromkeys(use.value for use in same):
            if value:
                parser = _PARSERS.get(first.plain)
                yield _Subject(
                    kind="parser" if parser else first.kind,
                    plain=first.plain,
                    shown=_valued(first.kind, first.name, value),
                    origin=_origins(use for use in same if use.value == value),
                    value=value,
                    parser=parser,
                )


def _origins(uses: Iterable[_Use]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(use.origin for use in uses))


def _taken(subject: _Subject, names: Names) -> frozenset[str] | str | None:
    """Return what a release takes in the subject's place; text: why that is not known; None: anything, or not asked."""
    if subject.source in names.unread:
        return names.unread[subject.source]
    if subject.parser:
        return frozenset(names.tool_parsers if subject.parser == "tool parser" else names.reasoning_parsers)
    known = names.environment if subject.kind == "environment" else names.flags
    if subject.value is not None:
        choices = known.get(subject.plain, Setting()).choices
        return frozenset(map(_folded, choices)) if choices else None
    if subject.plain not in known and "." in subject.plain:
        holder = _holder(subject.plain, names)
        if holder and holder.keys == "any":
            return None
        if holder and holder.keys == "unknown":
            return f"the keys of {subject.shown.partition('.')[0]} are of a type that is in no file read"
    return frozenset(known)


def _holder(plain: str, names: Names) -> Setting | None:
    """Return the flag that the nearest known part of a dotted name stands for."""
    while "." in plain:
        plain = plain.rpartition(".")[0]
        if plain in names.flags:
            return names.flags[plain]
    return None


def _has(subject: _Subject, names: Names | str) -> bool:
    taken = None if isinstance(names, str) else _taken(subject, names)
    return isinstance(taken, frozenset) and subject.key in taken


def _valued(kind: FactKind, name: str, value: str) -> str:
    return f"{name}={value}" if kind == "environment" else f"{name} {value}"


def _shown(subject: _Subject, near: str) -> str:
    if subject.value is not None:
        return subject.shown.removesuffix(subject.value) + near
    return f"--{near}" if subject.kind == "flag" else near


def _nearest(name: str, others: Iterable[str], cutoff: float) -> str:
    """Return the name most like another; of a dotted one by its last key: of a neighbour, or the same elsewhere."""
    parent, _, leaf = name.removeprefix(_OURS).rpartition(".")
    split = {other: other.removeprefix(_OURS).rpartition(".") for other in sorted(others)}
    beside = {last: other for other, (where, _, last) in split.items() if where == parent}
    if found := difflib.get_close_matches(leaf, beside, n=1, cutoff=cutoff):
        return beside[found[0]]
    moved = (other for other, (where, _, last) in split.items() if where != parent and _folded(last) == _folded(leaf))
    return next(moved, "")


def _spelled(near: str, subject: _Subject, names: Names) -> str:
    """Return a near value as the release writes it."""
    known = names.environment if subject.kind == "environment" else names.flags
    choices = known.get(subject.plain, Setting()).choices if subject.value is not None else ()
    return next((choice for choice in choices if _folded(choice) == near), near)


def _folded(text: str) -> str:
    """Return a value as vLLM's own types compare it at their most lenient: a difference here is one everywhere."""
    return text.lower().replace("-", "_")


def _same(value: str, default: str) -> bool:
    words = {"true": "1", "false": "0"}
    one, other = (words.get(_folded(text), _folded(text)) for text in (value, default))
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other
