"""Door: the sequential baseline with tool pictures kept."""

from distil.cli import enter

if __name__ == "__main__":
    enter("demo_distillation_with_tools.py")
