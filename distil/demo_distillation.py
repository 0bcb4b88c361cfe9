"""Door: the one-turn baseline without tools."""

import sys

from distil.cli import run_door

if __name__ == "__main__":
    sys.exit(run_door("demo_distillation.py"))
