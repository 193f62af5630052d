"""Red unless every given module that can be imported from a release's own tree can be imported from a patched one.

Usage: python3 imports.py PATCHED RELEASED MODULE...   (two folders that hold vllm/)
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
from pathlib import Path


def problems(root: str, modules: list[str]) -> dict[str, str]:
    """Import modules from a tree, in a fork of this process, and return what went wrong by module."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        sys.path.insert(0, root)
        found = {module: text.replace(root, "") for module in modules if (text := _problem(module))}
        with os.fdopen(writer, "w", encoding="utf-8") as out:
            json.dump(found, out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as said:
        text = said.read()
    os.waitpid(pid, 0)
    return dict(json.loads(text)) if text else dict.fromkeys(modules, "the interpreter died")


def _problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever a module raises when it is imported
        return f"{type(error).__name__}: {error}"
    return ""


def absent(root: str, module: str) -> set[str]:
    """Return the modules of its own package that a module imports by name, and that the tree does not have."""
    file = Path(root, *module.split(".")).with_suffix(".py")
    tree = ast.parse(file.read_bytes() if file.is_file() else b"")
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    plain += [
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    own = module.split(".", maxsplit=1)[0]
    places = {name: Path(root, *name.split(".")) for name in plain if name.split(".")[0] == own}
    return {name for name, place in places.items() if not (place.is_dir() or place.with_suffix(".py").is_file())}


def main(patched: str, released: str, modules: list[str]) -> int:
    before, after = problems(released, modules), problems(patched, modules)
    # a module that the patches add is missing before; one that needs compiled code or a GPU fails the same way in both
    wrong = {module: text for module, text in after.items() if before.get(module) != text}
    for module, text in wrong.items():
        print(f"red: {module} cannot be imported when all patches are applied: {text}")
    for module in after:
        for name in sorted(absent(patched, module) - absent(released, module)):
            print(f"red: {module} imports {name}, which the tree does not have")
            wrong[module] = name
    if wrong:
        return 1
    for module, text in after.items():
        print(f"not run: {module}: cannot be imported here, patched or not: {text}")
    print(f"green: {len(modules) - len(after)} of {len(modules)} changed modules can be imported")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
