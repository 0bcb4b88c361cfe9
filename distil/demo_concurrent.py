"""Door: zoom and rotate, many samples at once."""

import sys

from distil.cli import run_door

if __name__ == "__main__":
    sys.exit(run_door("demo_concurrent.py"))
