"""Finds compiled modules, and says which of them are not what their source compiles to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.patching.tree import Directory

_HASHED = 0b01


def files(tree: Directory, module: str) -> tuple[str, ...]:
    """Return the paths of everything compiled from a .py file, whichever Python did it."""
    if not module.endswith(".py"):
        return ()
    folder, _, name = module.rpartition("/")
    stem = re.escape(name[: -len(".py")])
    cache = f"{folder}/__pycache__" if folder else "__pycache__"
    form = re.compile(stem + r"\.[A-Za-z0-9_-]+(\.opt-[A-Za-z0-9]+)?\.pyc")
    found = [f"{cache}/{each}" for each in tree.names(cache) if form.fullmatch(each)]
    beside = module + "c"
    return (*found, beside) if tree.read(beside) is not None else tuple(found)


def stale(tree: Directory, module: str, source: bytes | None) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) for each compiled file that does not belong to this source."""
    for path in files(tree, module):
        problem = "its source is gone" if source is None else _problem(tree, path, module, source)
        if problem:
            yield path, problem


def _problem(tree: Directory, path: str, module: str, source: bytes) -> str:
    import importlib.util

    data = tree.read(path) or b""
    own = data[:4] == importlib.util.MAGIC_NUMBER
    if int.from_bytes(data[4:8], "little") & _HASHED:
        current = own and data[8:16] == importlib.util.source_hash(source)
    else:
        seconds = int(tree.locate(module).stat().st_mtime) & 0xFFFFFFFF
        stamp = seconds.to_bytes(4, "little") + (len(source) & 0xFFFFFFFF).to_bytes(4, "little")
        current = data[8:16] == stamp
    if not current:
        return "made from another version of its source"
    return "holds other code than its source" if own and not _same_code(tree, path, module, source) else ""


def _same_code(tree: Directory, path: str, module: str, source: bytes) -> bool:
    """Compare code objects: a header can be right by chance, when time and size did not change."""
    import warnings
    from importlib.machinery import SourcelessFileLoader

    level = re.search(r"\.opt-([12])\.pyc$", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = compile(source, module, "exec", dont_inherit=True, optimize=int(level.group(1)) if level else 0)
        return bool(SourcelessFileLoader(module, str(tree.locate(path))).get_code(module) == wanted)
    except (ImportError, EOFError, ValueError, TypeError, SyntaxError, SystemError, LookupError, AttributeError):
        return False
