"""Kiln builds, patches and proves vLLM images."""

__version__ = "0.1.0"
