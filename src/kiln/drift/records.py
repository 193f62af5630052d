"""What drift says: a verdict for each patch on each release, with what it rests on; facts only, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal


class Verdict(StrEnum):
    """The closed vocabulary, from best to worst.

    CLEAN: an edition gives the recorded hashes. NOT_NEEDED: outside the releases that the patch applies to.
    MERGED: the release has the change, as recorded, or line by line. MERGED_DIFFERENT: the release's own change covers
    the same lines in other words. WITHDRAWN: upstream had the change and took it back. The others are the patch
    engine's: of the nearest edition below, on this release's files. UNKNOWN: could not be looked at.
    """

    CLEAN = "CLEAN"
    NOT_NEEDED = "NOT_NEEDED"
    MERGED = "MERGED"
    MERGED_DIFFERENT = "MERGED_DIFFERENT"
    WITHDRAWN = "WITHDRAWN"
    OFFSET = "OFFSET"
    MOVED = "MOVED"
    AMBIGUOUS = "AMBIGUOUS"
    CONFLICT = "CONFLICT"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """One file of a patch; `expected` and `found` are hashes, or line and text where `hunk` is given."""

    path: str
    verdict: Verdict
    hunk: int | None = None
    expected: str = ""
    found: str = ""
    hint: str = ""
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One patch on one column.

    known: the catalog says so already; all else is new drift. edition: the release whose edition was judged.
    first: the first release that is MERGED or WITHDRAWN. port: how a three-way merge of that edition ends, "" where it
    was not tried. diff: that edition, or the ported one where `port` is clean. forced: set by hand, to test alerts.
    """

    patch: str
    column: str
    verdict: Verdict
    known: bool
    says: str
    next: str = ""
    edition: str = ""
    first: str = ""
    port: Literal["", "clean", "conflict"] = ""
    files: tuple[FileVerdict, ...] = ()
    diff: str = ""
    forced: bool = False

    @property
    def key(self) -> str:
        """What stays the same while this fact is told again: the name of its issue."""
        return f"{self.patch}@{self.column}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """Sources that patches are judged on; `identity` is a wheel's sha256, a commit or an image digest.

    in_catalog: images/releases.yaml has this release. problem: why it could not be read, else "". next: what helps.
    """

    name: str
    kind: Literal["release", "ref", "image"]
    identity: str
    in_catalog: bool
    problem: str = ""
    next: str = ""


@dataclass(frozen=True, kw_only=True)
class RecipeFact:
    """One flag, environment variable or parser of a recipe that a release does not take as the recipe means it.

    late: `args_since` keeps it from a release that takes it. origin: the recipe layers that set it. near: the nearest
    name that the release has. known: nothing to alert about, such as a value that became the default.
    """

    model: str
    column: str
    kind: Literal["flag", "environment", "parser"]
    name: str
    problem: Literal["unknown", "removed", "renamed", "late", "default", "unreadable"]
    says: str
    origin: tuple[str, ...]
    near: str = ""
    known: bool = False

    @property
    def key(self) -> str:
        return f"{self.model} {self.name}@{self.column}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Patches down in series order, columns across in order of release; `titles` maps a patch to its title."""

    columns: tuple[Column, ...]
    titles: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    recipes: tuple[RecipeFact, ...]

    @property
    def alerts(self) -> tuple[Cell | RecipeFact, ...]:
        """Return what the catalog does not say yet."""
        facts: tuple[Cell | RecipeFact, ...] = (*self.cells, *self.recipes)
        return tuple(fact for fact in facts if not fact.known)

    def as_data(self) -> dict[str, Any]:
        """Return plain JSON data; the same facts give the same data."""
        return {
            "columns": [vars(column) for column in self.columns],
            "titles": dict(self.titles),
            "cells": [
                vars(cell)
                | {"key": cell.key, "verdict": cell.verdict.value, "files": [_file(row) for row in cell.files]}
                for cell in self.cells
            ],
            "recipes": [vars(fact) | {"key": fact.key, "origin": list(fact.origin)} for fact in self.recipes],
            "alerts": [fact.key for fact in self.alerts],
        }


def _file(row: FileVerdict) -> dict[str, Any]:
    return vars(row) | {"verdict": row.verdict.value, "candidates": list(row.candidates)}
