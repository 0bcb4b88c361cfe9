"""Door: the one-turn baseline without tools."""

from distil.cli import enter

if __name__ == "__main__":
    enter("demo_distillation.py")
