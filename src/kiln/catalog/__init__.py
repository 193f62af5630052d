"""The hand-edited catalog: releases and images, patches, recipes, as strict frozen records."""

from __future__ import annotations

from kiln.catalog.load import Catalog, edition_path, find_root, load, state_of

__all__ = ["Catalog", "edition_path", "find_root", "load", "state_of"]
