"""Lets `python -m kiln` run the program, or say what of its environment is missing."""

import sys

from kiln import errors

try:
    from kiln.tasks.program import main
except ImportError as error:
    damage = errors.damaged(error)
    if damage is None:
        raise
    print(f"✗ {damage.message}\n  next: {damage.hint}", file=sys.stderr)
    sys.exit(damage.exit_code)

main()
