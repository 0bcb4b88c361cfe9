"""Door: Python code that the teacher writes, run in a sandbox."""

import sys

from distil.cli import run_door

if __name__ == "__main__":
    sys.exit(run_door("demo_python_code.py"))
