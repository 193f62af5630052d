"""Runs the patch engine on a tree: a folder here, a running container, an image."""

from __future__ import annotations

from kiln.trees.answer import Answer
from kiln.trees.pack import pack
from kiln.trees.run import Verb, Wanted, Where, run

__all__ = ["Answer", "Verb", "Wanted", "Where", "pack", "run"]
