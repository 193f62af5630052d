"""The recipe dialect: what a target is served with, and where each flag came from."""

from __future__ import annotations

from kiln.recipe.serve import EnvVar, Flag, Serve, resolve

__all__ = ["EnvVar", "Flag", "Serve", "resolve"]
