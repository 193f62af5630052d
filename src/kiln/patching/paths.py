"""Says whether a path may be touched: by its name here, by what lies on the way in `tree`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.patching import errors

if TYPE_CHECKING:
    from collections.abc import Iterable

NEW, OLD = ".kiln-new", ".kiln-old"
DROPPINGS = (NEW, OLD, ".orig", ".rej", "~")  # what we, GNU patch and editors leave beside a file
_NAME_BYTES = 255 - len(NEW)  # our file beside it has to fit too
_PATH_BYTES, _PATH_PARTS = 1024, 40
LARGEST = 8 * 1024 * 1024  # what a file of a series directory may hold


def safe(path: str) -> str:
    """Return `path` if it is relative, normalised and printable; else raise BadPath."""
    problem = _problem(path)
    if problem:
        raise errors.BadPath(f"{path[:200]!a}: {problem}")
    return path


def target(path: str) -> str:
    """Return `path` if a patch may change it: safe, and neither metadata, bytecode nor a file of ours."""
    safe(path)
    parts = path.split("/")
    if parts[0].endswith((".dist-info", ".egg-info", ".data")):
        raise errors.BadPath(f"{path}: installation metadata is not for patches")
    if "__pycache__" in parts or path.endswith((".pyc", ".pyo", NEW, OLD)):
        raise errors.BadPath(f"{path}: bytecode and {NEW}/{OLD} files are not for patches")
    return path


def refuse_collisions(paths: Iterable[str]) -> None:
    """Raise BadPath when two paths are one file, or one lies below the other, where letter case is ignored."""
    seen: dict[str, str] = {}
    for path in sorted(set(paths)):
        other = seen.setdefault(folded(path), path)
        if other != path:
            raise errors.BadPath(f"{path}: differs from {other} by letter case only")
    for path in seen.values():
        parts = folded(path).split("/")
        for n in range(1, len(parts)):
            above = seen.get("/".join(parts[:n]))
            if above:
                raise errors.BadPath(f"{path}: lies below {above}, which is a file")


def folded(path: str) -> str:
    if path.isascii():
        return path.lower()
    import unicodedata

    return unicodedata.normalize("NFC", path.casefold())


def _problem(path: str) -> str:
    if not path or path.startswith("/") or path[1:2] == ":":
        return "not a relative path"
    parts = path.split("/")
    if _is_long(path, parts):
        return "too long"
    if not path.isascii() or not path.isprintable() or "\\" in path:
        import unicodedata

        odd = next((c for c in path if c == "\\" or unicodedata.category(c) in _ODD), None)
        if odd is not None:
            return f"holds the character {odd!a}"
        if unicodedata.normalize("NFC", path) != path:
            return "not in Unicode normal form C"
    if any(part in {"", ".", ".."} for part in parts):
        return "not normalised, or it leaves the root"
    return ""


def _is_long(path: str, parts: list[str]) -> bool:
    if max(len(path), len(path.encode(errors="replace"))) > _PATH_BYTES or len(parts) > _PATH_PARTS:
        return True
    return any(len(part.encode(errors="replace")) > _NAME_BYTES for part in parts)


_ODD = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # control, bidi, surrogate, private, unassigned
