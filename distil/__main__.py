"""`python -m distil` is the `distil` command."""

from distil.cli import enter

enter()
