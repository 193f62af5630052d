"""Locks the catalog's images: what registries say of their tags, and what their layers hold, in images/lock.json."""
