"""`python -m distil` is the `distil` command."""

import sys

from distil.cli import main

sys.exit(main())
