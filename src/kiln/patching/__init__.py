"""A strict applier of unified diffs to an installed Python tree; needs the standard library and unidiff only."""
