"""Reads JSON that this program wrote, refusing what it would not have written, and writes it the one way."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from kiln.patching import errors, paths

LARGEST = 2 * 1024 * 1024  # a value of this size fits into 200 MB, whatever it is
_LONGEST_NUMBER = 20


def render(value: dict[str, Any]) -> bytes:
    """Return sorted keys, ASCII, and a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def line(value: dict[str, Any]) -> bytes:
    """Return the same on one line."""
    return (json.dumps(value, separators=(",", ":"), sort_keys=True) + "\n").encode()


def load(data: bytes, where: str) -> object:
    """Return the value; `where` opens the message of the BadSeries that anything odd raises."""
    if len(data) > LARGEST:
        raise errors.BadSeries(f"{where}: {len(data)} bytes; the limit is {LARGEST}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise errors.BadSeries(f"{where}: a key stands there twice, among {', '.join(found)}")
        return found

    def refuse(constant: str) -> NoReturn:
        raise errors.BadSeries(f"{where}: {constant} is not a number that belongs here")

    def whole(digits: str) -> int:
        return int(digits) if len(digits) <= _LONGEST_NUMBER else refuse(digits[:_LONGEST_NUMBER] + "...")

    try:
        value: object = json.loads(
            data.decode(), object_pairs_hook=unique, parse_constant=refuse, parse_float=refuse, parse_int=whole
        )
    except (ValueError, RecursionError) as error:
        raise errors.BadSeries(f"{where}: not JSON: {error}") from error
    return value


def fields(value: object, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """Return an object that has these keys and no other."""
    found: dict[str, Any] = typed(value, dict, where)
    missing, extra = sorted(set(names) - found.keys()), sorted(found.keys() - set(names))
    if missing or extra:
        raise errors.BadSeries(f"{where}: missing: {', '.join(missing) or '-'}; unknown: {', '.join(extra) or '-'}")
    return found


def typed(value: object, kind: type[Any], where: str) -> Any:
    if type(value) is not kind:
        raise errors.BadSeries(f"{where}: {type(value).__name__} where {kind.__name__} belongs")
    return value


def path_list(value: object, where: str) -> tuple[str, ...]:
    return tuple(paths.safe(typed(path, str, where)) for path in typed(value, list, where))
