"""Door: the sequential baseline with tool pictures kept."""

import sys

from distil.cli import run_door

if __name__ == "__main__":
    sys.exit(run_door("demo_distillation_with_tools.py"))
