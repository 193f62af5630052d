"""Which patch breaks, is merged or is withdrawn, on which release, and since when."""
