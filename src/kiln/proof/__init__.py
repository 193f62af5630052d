"""Proves patches on the real files of their releases: red without them, green with them."""
