"""Kiln builds, patches and proves vLLM images."""
