"""Door: zoom and rotate, many samples at once."""

from distil.cli import enter

if __name__ == "__main__":
    enter("demo_concurrent.py")
