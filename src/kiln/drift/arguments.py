"""The flags of a release's `vllm serve`, read from its sources by AST; nothing of the release is imported.

A flag is declared by `add_argument`, mostly as `**some_kwargs["field"]` with `some_kwargs = get_kwargs(SomeConfig)`:
type and default are then those of the field. The command line's own flags are the fields of one class, made in a loop.
A flag whose type is a config class also takes the fields of that class as keys: `--attention-config.backend`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from kiln.drift.fields import Classes, Field, Setting, Unreadable, index

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ENGINE = "vllm/engine/arg_utils.py"
PARSER = "vllm/utils/argparse_utils.py"
# moved twice in 0.24.0 .. 0.33.0: entrypoints/openai, launchers, common
COMMAND_LINE = re.compile(r"vllm/entrypoints/(?:\w+/)?cli_args\.py")
_MAX_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class _Module:
    """One module's `add_argument` calls, and what the names in them stand for.

    kwargs: variable -> the class it holds the arguments of. picked: variable -> the field that it holds. changed:
    variables and fields whose default or choices are changed later.
    """

    path: str
    tree: ast.Module
    classes: Classes
    kwargs: dict[str, str] = field(default_factory=dict)
    picked: dict[str, Field] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)


def flags(trees: Mapping[str, ast.Module]) -> dict[str, Setting]:
    """Return every flag without its dashes, `_` as `-` before the first dot; raises Unreadable."""
    lines = [path for path, tree in trees.items() if COMMAND_LINE.fullmatch(path) and _maker(tree)]
    if len(lines) != 1:
        raise Unreadable(f"make_arg_parser is in {len(lines)} of vllm/entrypoints/*/cli_args.py, not in one")
    pairs = _pairs(trees[PARSER])
    classes = index(trees.values())
    found: dict[str, Setting] = {}
    for path in (lines[0], ENGINE):
        declared = dict(_declared(_module(path, trees[path], classes)))
        if path == ENGINE and not declared:
            raise Unreadable(f"{path}: no add_argument names a flag")
        found |= declared
    found |= _of_the_frontend(lines[0], trees[lines[0]], classes)
    return dict(_expanded(found, classes, pairs))


def _expanded(
    found: Mapping[str, Setting], classes: Classes, pairs: Mapping[str, str]
) -> Iterator[tuple[str, Setting]]:
    for name, setting in found.items():
        yield name, setting
        yield from _keys(name, setting, classes, depth=0)
        if setting.switch == "both":
            opposite = replace(setting, default=_opposite(setting.default))
            yield f"no-{name}", opposite
            yield from ((to + name.removeprefix(of), opposite) for of, to in pairs.items() if name.startswith(of))


def _pairs(tree: ast.Module) -> dict[str, str]:
    """Return which beginning of a switch's name stands for the opposite of which; raises Unreadable.

    From 0.33.0 on, `--enable-x` also makes `--disable-x`, and the other way round.
    """
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "FlexibleArgumentParser" not in classes:
        raise Unreadable(f"{PARSER}: no class FlexibleArgumentParser")
    found: dict[str, str] = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args[2:]):
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "register" or _text(call.args[0]) != "action":
            continue
        action = classes.get(ast.unparse(call.args[2]))
        for node in action.body if action else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                words = [_text(word) if word else "" for word in (*node.value.keys, *node.value.values)]
                half = len(words) // 2
                found |= {of[2:]: to[2:] for of, to in zip(words[:half], words[half:], strict=True)}
        if not found or not all(found) or not all(found.values()):
            raise Unreadable(f"{PARSER}:{call.lineno}: flags get names in an unknown way")
    return found


def _keys(prefix: str, setting: Setting, classes: Classes, *, depth: int) -> Iterator[tuple[str, Setting]]:
    if setting.keys == "fixed" and depth < _MAX_DEPTH:
        for key, found in classes.fields(setting.type).items():
            if found.settable:
                inner = classes.setting(found, key=True)
                yield f"{prefix}.{key}", inner
                yield from _keys(f"{prefix}.{key}", inner, classes, depth=depth + 1)


def _opposite(default: str | None) -> str | None:
    return {"true": "false", "false": "true"}.get(default or "")


def _maker(tree: ast.Module) -> ast.FunctionDef | None:
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return next((node for node in functions if node.name == "make_arg_parser"), None)


def _module(path: str, tree: ast.Module, classes: Classes) -> _Module:
    """Return the module with its `x = get_kwargs(C)`, `y = x["field"]`, and what it does to `x["field"]["default"]`."""
    module = _Module(path=path, tree=tree, classes=classes)
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _text(node.slice) in {"default", "choices"}:
            inner = node.value
            module.changed.add(_text(inner.slice) if isinstance(inner, ast.Subscript) else ast.unparse(inner))
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name):
            if owner := _class_of(node.value):
                module.kwargs[target.id] = owner
            elif picked := _field(node.value, module):
                module.picked[target.id] = picked
    return module


def _class_of(node: ast.expr) -> str | None:
    """Return C of `get_kwargs(C)`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "get_kwargs" and node.args:
        return ast.unparse(node.args[0])
    return None


def _field(node: ast.expr, module: _Module) -> Field | None:
    """Return the field that `x["field"]`, `get_kwargs(C)["field"]` or a variable for one of them stands for."""
    if isinstance(node, ast.Name):
        return module.picked.get(node.id)
    if not isinstance(node, ast.Subscript):
        return None
    held = node.value
    owner = module.kwargs.get(held.id) if isinstance(held, ast.Name) else _class_of(held)
    return module.classes.fields(owner).get(_text(node.slice)) if owner else None


def _declared(module: _Module) -> Iterator[tuple[str, Setting]]:
    """Yield the flags of each `add_argument`; raises Unreadable where a name is put together in an unknown way."""
    for node in ast.walk(module.tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
        if called != "add_argument" or not isinstance(node, ast.Call) or _from_fields(node):
            continue
        names = [_text(argument) for argument in node.args]
        if not names or not all(names):
            raise Unreadable(f"{module.path}:{node.lineno}: add_argument with a name that is not written there")
        setting = _setting(node, module)
        yield from ((name[2:].replace("_", "-"), setting) for name in names if name.startswith("--"))


def _from_fields(call: ast.Call) -> bool:
    """Whether this is the call in a loop over the fields of the command line's class."""
    names = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    return len(names) == 1 and bool(re.fullmatch(r"""f(['"])--\{\w+\.replace\('_', '-'\)\}\1""", ast.unparse(names[0])))


def _setting(call: ast.Call, module: _Module) -> Setting:
    """Return what one `add_argument` says of its flag; a later word is stronger."""
    setting = Setting(keys="unknown")
    for word in call.keywords:
        if word.arg is None:
            setting = _spread(word.value, module)
        elif word.arg == "default":
            setting = replace(setting, default=module.classes.literal(word.value))
        elif word.arg == "choices":
            setting = replace(setting, choices=_texts(word.value))
        elif word.arg == "action":
            setting = _acting(setting, ast.unparse(word.value))
        elif word.arg == "type" and setting.keys == "unknown":
            setting = replace(setting, keys="none" if ast.unparse(word.value) in {"int", "str", "float"} else "unknown")
    return setting


def _spread(node: ast.expr, module: _Module) -> Setting:
    """Return the setting of `**node`, where node may be `{**x["field"], "default": None}`."""
    changed: dict[str, ast.expr] = {}
    if isinstance(node, ast.Dict):
        changed = {_text(key): value for key, value in zip(node.keys, node.values, strict=True) if key}
        spread = [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
        node = spread[0] if len(spread) == 1 else node
    found = _field(node, module)
    if not found:
        return Setting(keys="unknown")
    setting = module.classes.setting(found)
    if found.name in module.changed or (isinstance(node, ast.Name) and node.id in module.changed):
        setting = replace(setting, default=None, choices=())
    return replace(setting, default=module.classes.literal(changed["default"])) if "default" in changed else setting


def _acting(setting: Setting, action: str) -> Setting:
    switches: dict[str, tuple[Literal["one", "both"], str | None]] = {
        "'store_true'": ("one", "false"),
        "argparse.BooleanOptionalAction": ("both", None),
    }
    if action not in switches:
        return setting
    switch, default = switches[action]
    return replace(setting, switch=switch, default=setting.default or default, keys="none")


def _of_the_frontend(path: str, tree: ast.Module, classes: Classes) -> dict[str, Setting]:
    """Return the flags that are made of the fields of the classes that `make_arg_parser` calls; raises Unreadable."""
    own = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    maker = _maker(tree)
    assert maker
    changed = _module(path, tree, classes).changed
    found: dict[str, Setting] = {}
    for node in ast.walk(maker):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_cli_args":
            name = ast.unparse(node.func.value)
            if name not in classes.definitions:
                raise Unreadable(f"{path}: the class {name}, whose arguments vllm serve takes, is in no file read")
            if name in own:
                if not any(_makes_flags(own[base]) for base in classes.bases(name) if base in own):
                    raise Unreadable(f"{path}: {name} makes its flags in an unknown way")
                for key, declared in classes.fields(name).items():
                    setting = classes.setting(declared)
                    setting = replace(setting, default=None, choices=()) if key in changed else setting
                    found[key.replace("_", "-")] = setting
    if not found:
        raise Unreadable(f"{path}: make_arg_parser takes no class of this file")
    return found


def _makes_flags(definition: ast.ClassDef) -> bool:
    return any(isinstance(node, ast.Call) and _from_fields(node) for node in ast.walk(definition))


def _texts(node: ast.expr) -> tuple[str, ...]:
    """Return the items of a literal list; () for anything else."""
    items: Iterable[ast.expr] = node.elts if isinstance(node, ast.List | ast.Tuple) else ()
    texts = tuple(str(item.value) for item in items if isinstance(item, ast.Constant))
    return texts if len(texts) == len(tuple(items)) else ()


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
