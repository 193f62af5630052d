"""Starts the command line, in the zipapp and with `python -m kiln.patching`."""

import sys

from kiln.patching.cli import main

sys.exit(main())
