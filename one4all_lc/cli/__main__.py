"""`python -m one4all_lc.cli`."""

from one4all_lc.cli import run

run()
