"""What a release takes: flags, environment variables and parsers, read from its sources by AST."""

from __future__ import annotations

import ast
import functools
import json
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kiln import errors
from kiln.drift import arguments
from kiln.drift.fields import Setting, Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

_ENVIRONMENT = "vllm/envs.py"
_TOOLS = ("vllm/tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER")
_REASONING = ("vllm/reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER")
# the config classes are the types of flags; the backends are the values of some
_TYPES = re.compile(r"vllm/config/\w+\.py|vllm/v1/attention/backends/(?:mla/prefill/)?registry\.py")
# among others, these ask whether a variable is set, which is then no matter of its default
_ASKING = re.compile(r"vllm/model_executor/layers/fused_moe/oracle/\w+\.py")
_ASKED = re.compile(rb"""is_set\(\s*["'](VLLM_\w+)["']|["'](VLLM_\w+)["']\s+(?:not\s+)?in\s+os\.environ""")
_MAX_BYTES = 4_000_000
_FILES_KEPT = 100  # parsed: most files of a release are those of the one before
_VERSION = 1  # of what is read and how: raise it with every change of meaning, so that no cache is believed
_CHANGES = {"update", "setdefault", "pop", "clear"}

_PLAIN = vars(Setting())

Kind = Literal["flag", "environment", "tool parser", "reasoning parser"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What one release takes; a kind that is in `unread`, with the reason, holds nothing and proves nothing."""

    flags: dict[str, Setting]
    environment: dict[str, Setting]
    tool_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]
    unread: dict[Kind, str]

    def to_json(self) -> str:
        """Return the same as text; the same names give the same text."""
        data = vars(self) | {"version": _VERSION}
        for group in ("flags", "environment"):
            data[group] = {name: _differing(setting) for name, setting in data[group].items()}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Names:
        """Return what `to_json` wrote; raises BadInput for text of another version of Kiln, or damaged."""
        try:
            data = json.loads(text)
            if data.pop("version") != _VERSION:
                raise errors.BadInput("names of a release: written by another version of Kiln")
            for group in ("flags", "environment"):
                data[group] = {name: _setting(given) for name, given in data[group].items()}
            for group in ("tool_parsers", "reasoning_parsers"):
                data[group] = tuple(data[group])
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.BadInput(f"names of a release: damaged: {error}") from error


def paths(wheel: Collection[str]) -> tuple[str, ...]:
    """Return which of a wheel's files `read` wants."""
    fixed = {_ENVIRONMENT, arguments.ENGINE, arguments.PARSER, _TOOLS[0], _REASONING[0]}
    shapes = (_TYPES, _ASKING, arguments.COMMAND_LINE)
    return tuple(sorted(name for name in wheel if name in fixed or any(shape.fullmatch(name) for shape in shapes)))


def read(files: Mapping[str, bytes]) -> Names:
    """Return what a release takes, from the files that `paths` names; what cannot be read is in `unread`."""
    unread: dict[Kind, str] = {}

    def attempt(kind: Kind, reader: Callable[[], T], nothing: T) -> T:
        try:
            return reader()
        except Unreadable as error:
            unread[kind] = str(error)
        except RecursionError:
            unread[kind] = "nested too deeply"
        return nothing

    needed = [path for path in sorted(files) if arguments.COMMAND_LINE.fullmatch(path) or _TYPES.fullmatch(path)]
    return Names(
        flags=attempt(
            "flag",
            lambda: arguments.flags(
                {path: _parse(files, path) for path in (*needed, arguments.ENGINE, arguments.PARSER)}
            ),
            {},
        ),
        environment=attempt("environment", lambda: dict(_environment(_parse(files, _ENVIRONMENT), _asked(files))), {}),
        tool_parsers=attempt("tool parser", lambda: _parsers(files, *_TOOLS), ()),
        reasoning_parsers=attempt("reasoning parser", lambda: _parsers(files, *_REASONING), ()),
        unread=unread,
    )


def _parse(files: Mapping[str, bytes], path: str) -> ast.Module:
    if path not in files:
        raise Unreadable(f"{path} is not in this release")
    if len(files[path]) > _MAX_BYTES:
        raise Unreadable(f"{path}: larger than {_MAX_BYTES} bytes")
    try:
        return _tree(files[path])
    except (SyntaxError, ValueError, MemoryError) as error:
        raise Unreadable(f"{path}: not read as Python: {error}") from error


@functools.lru_cache(_FILES_KEPT)
def _tree(data: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a release's own strings escape is not our business
        return ast.parse(data)


def forget() -> None:
    """Let go of what was parsed; Python's own end would look through all of it."""
    _tree.cache_clear()


def _environment(tree: ast.Module, asked: frozenset[str]) -> Iterator[tuple[str, Setting]]:
    """Yield the variables of the one dict in vllm/envs.py; raises Unreadable where it is made in another way."""
    if changed := next(filter(_changes_environment, ast.walk(tree)), None):
        raise Unreadable(f"{_ENVIRONMENT}:{getattr(changed, 'lineno', 0)}: environment_variables is changed there")
    found = _assigned(tree, "environment_variables")
    if not isinstance(found, ast.Dict) or not found.keys:
        raise Unreadable(f"{_ENVIRONMENT}: environment_variables is no dict written there")
    for key, value in zip(found.keys, found.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise Unreadable(f"{_ENVIRONMENT}:{value.lineno}: a variable whose name is not written there")
        yield key.value, replace(_variable(key.value, value), asked=key.value in asked)


def _asked(files: Mapping[str, bytes]) -> frozenset[str]:
    """Return the variables of which a file that was read asks whether they are set."""
    found = (match for data in files.values() for match in _ASKED.finditer(data))
    return frozenset((match[1] or match[2]).decode() for match in found)


def _changes_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.AugAssign):
        return _is_table(node.target)
    if isinstance(node, ast.Subscript):
        return isinstance(node.ctx, ast.Store | ast.Del) and _is_table(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr in _CHANGES and _is_table(node.value)
    return False


def _is_table(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "environment_variables"


def _variable(name: str, value: ast.expr) -> Setting:
    """Return default and choices of a variable, where `os.getenv(name, "...")` or `env_with_choices` says them."""
    defaults: set[str | None] = set()
    choices: tuple[str, ...] = ()
    for node in ast.walk(value):
        if isinstance(node, ast.IfExp | ast.BoolOp):
            return Setting()  # more than one default
        if not isinstance(node, ast.Call) or not node.args or _constant(node.args[0]) != name:
            continue
        function = ast.unparse(node.func)
        if function in {"os.getenv", "os.environ.get", "env_with_choices"}:
            defaults.add(_constant(node.args[1]) if len(node.args) > 1 else None)
        if function == "env_with_choices" and node.args[2:] and isinstance(node.args[2], ast.List):
            items = [_constant(item) for item in node.args[2].elts]
            choices = tuple(item for item in items if item is not None) if None not in items else ()
    return Setting(default=defaults.pop() if len(defaults) == 1 else None, choices=choices)


def _parsers(files: Mapping[str, bytes], path: str, variable: str) -> tuple[str, ...]:
    """Return the names of the one dict of parsers, which all are registered from; raises Unreadable."""
    tree = _parse(files, path)
    found = _assigned(tree, variable)
    if not isinstance(found, ast.Dict) or not found.keys:
        raise Unreadable(f"{path}: {variable} is no dict written there")
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    if sum(str(getattr(call.func, "attr", "")).startswith("register") for call in calls) > 1:
        raise Unreadable(f"{path}: parsers are registered in more than one place")
    names = [_constant(key) if key else None for key in found.keys]
    if None in names:
        raise Unreadable(f"{path}: a parser whose name is not written there")
    return tuple(name for name in names if name is not None)


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """Return what a name is set to at the top of a module, if that is once."""
    found: list[ast.expr | None] = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            found.append(getattr(node, "value", None))
    return found[0] if len(found) == 1 else None


def _constant(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return str(node.value) or None
    return None


def _differing(setting: Setting) -> dict[str, Any]:
    return {key: value for key, value in vars(setting).items() if value != _PLAIN[key]}


def _setting(given: Mapping[str, Any]) -> Setting:
    return Setting(**(dict(given) | {"choices": tuple(given.get("choices", ()))}))
