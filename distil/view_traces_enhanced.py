"""Door: the viewer."""

import sys

from distil.cli import run_viewer_door

if __name__ == "__main__":
    sys.exit(run_viewer_door())
