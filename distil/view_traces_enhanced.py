"""Door: the viewer."""

from distil.cli import enter

if __name__ == "__main__":
    enter("view_traces_enhanced.py")
