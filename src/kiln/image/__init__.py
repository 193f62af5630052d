"""Images of a target: bases, build contexts, the BuildKit command, the build itself."""
