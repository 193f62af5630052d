"""Writes YAML that every parser reads alike: text that some of them take for something else is quoted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

# 1e3, 0o17 and 012 are numbers to some parsers and text to others; what begins like this is text to all
_PLAIN = re.compile(r"[A-Za-z/].*")


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and text in quotes where it could be read as anything else."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(documents: Iterable[Any]) -> str:
    """Return documents as YAML, keys in their own order."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=False)
