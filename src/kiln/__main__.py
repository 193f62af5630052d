"""Lets `python -m kiln` run the program."""

from kiln.tasks.program import main

main()
