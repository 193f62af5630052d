"""Says which file of the installed package a name in somebody's diff means, if it means one."""

from __future__ import annotations

import re

from kiln.patching import errors, paths

NOWHERE = "/dev/null"
_PACKAGE = "vllm"
_INSTALLED = frozenset({"dist-packages", "site-packages"})
_BESIDE = frozenset(
    {
        *("tests", "docs", "csrc", "examples", "benchmarks", "tools", "cmake", "docker", "requirements", "rust"),
        *(".github", ".buildkite"),
    }
)
_SUFFIXES = (".orig", ".bak", ".old", "~")


def names(opening: bytes, old: bytes, new: bytes) -> tuple[str, str]:
    """Return the two names of a file, without a/ and b/, from its `diff --git` line, `---` and `+++`, where given."""
    sides = [_text(side).partition("\t")[0] for side in (old, new)]
    if not any(sides):
        rest = _text(opening).removeprefix("diff --git ")
        middle = len(rest) // 2
        sides = [rest[:middle], rest[middle + 1 :]]
        if rest[middle : middle + 1] != " " or sides[0][1:] != sides[1][1:]:  # a rename, or odd names
            sides = [rest.split(" ")[0], rest.split(" ")[-1]]
    prefixed = all(side == NOWHERE or side.startswith(prefix) for side, prefix in zip(sides, ("a/", "b/"), strict=True))
    first, second = (side[2:] if prefixed and side != NOWHERE else side for side in sides)
    return first, second


def located(old: str, new: str) -> tuple[str, str]:
    """Return (path, why it is no file of the package, or ""); raises BadPath for a name that no diff should hold."""
    sides = [side for side in (old, new) if side != NOWHERE]
    if not sides:
        raise errors.BadPath(f"{NOWHERE!a} on both sides names no file")
    if any(side.startswith('"') for side in sides):
        return sides[-1], "its name is quoted"
    found = [_within(side) for side in sides]
    path, why = found[-1]
    first = found[0][0]
    if first != path and not any(first == path + suffix for suffix in _SUFFIXES):
        return path, f"renamed from {first}"
    return path, why


def may_be_ours(path: str) -> bool:
    """Say whether a path that was left out may be one of the package all the same."""
    parts = path.strip('"').split("/")
    return _PACKAGE in parts[:-1] and parts[0] not in _BESIDE


def _within(name: str) -> tuple[str, str]:
    """Return a name's path within the wheel; where it is in no package, the name and why."""
    plain = name.removeprefix("./")
    paths.safe(plain.lstrip("/"))
    parts = plain.split("/")
    at = [n for n, part in enumerate(parts[:-1]) if part == _PACKAGE]
    installed = [n for n in at if n and parts[n - 1] in _INSTALLED]
    if len(installed) == 1:
        return paths.target("/".join(parts[installed[0] :])), ""
    if plain.startswith("/"):
        raise errors.BadPath(f"{name[:200]!a}: an absolute path that is in no installed package")
    if at[:1] == [0]:
        return paths.target(plain), ""
    if len(at) == 1 and at[0] == 1 and parts[0] not in _BESIDE:
        return paths.target("/".join(parts[1:])), ""
    if len(parts) > 1 and (not at or parts[0] in _BESIDE):
        return plain, f"lies in {parts[0]}/, which is no part of the installed package"
    return plain, "where the package begins is not clear" if at else "no file of the installed package"


def _text(name: bytes) -> str:
    """Return a name as text; bytes that are none show as escapes, and are refused as such."""
    return re.sub(r"[\r\n]+$", "", name.decode("utf-8", "backslashreplace"))
