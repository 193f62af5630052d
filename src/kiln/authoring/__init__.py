"""Makes editions: from a worktree of the real files, from somebody's diff, always through one gate."""
