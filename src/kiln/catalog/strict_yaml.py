"""Reads YAML without surprises: no duplicate keys, dates, yes/no booleans, base-60 or octal numbers; bounded size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from kiln import errors

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 2_000_000
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):  # type: ignore[misc]  # the C loader has no type
    pass


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in result:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _sequence(loader: Any, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(item, deep=True) for item in node.value]


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 10 if text.lstrip("+-").isdigit() else 0)


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", ""))


# nothing but what JSON has: an explicit !!timestamp, !!set, !!binary or !!python/... is an error
_TAG = "tag:yaml.org,2002:"
_DIGITS = list("-+.0123456789")
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag == f"{_TAG}null"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_StrictLoader.yaml_constructors = {
    None: yaml.SafeLoader.construct_undefined,
    f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
    f"{_TAG}bool": yaml.SafeLoader.construct_yaml_bool,
    f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
    f"{_TAG}int": _int,
    f"{_TAG}float": _float,
    f"{_TAG}seq": _sequence,
    f"{_TAG}map": _mapping,
}
for _tag, _regexp, _first in (
    ("bool", r"^(?:true|false)$", list("tf")),
    ("int", r"^[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|[0-9][0-9_]*)$", _DIGITS),
    ("float", r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$", _DIGITS),
):
    _StrictLoader.add_implicit_resolver(_TAG + _tag, re.compile(_regexp), _first)


def read(path: Path, *, shown: Path | None = None) -> Any:
    """Return the plain data of one YAML file. Raises BadInput naming the file (as `shown`), line and column."""
    shown = shown or path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.BadInput(f"{shown}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise errors.BadInput(f"{shown}: larger than {_MAX_BYTES} bytes")
    try:
        return yaml.load(data.decode("utf-8"), Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe loader
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise errors.BadInput(f"{shown}:{line}: not UTF-8: byte 0x{data[error.start]:02x}") from error
    except yaml.reader.ReaderError as error:
        line = data.count(b"\n", 0, error.position) + 1
        raise errors.BadInput(f"{shown}:{line}: {error.reason}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else str(shown)
        raise errors.BadInput(f"{where}: {getattr(error, 'problem', None) or error}") from error
