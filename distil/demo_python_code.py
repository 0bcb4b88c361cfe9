"""Door: Python code that the teacher writes, run in a sandbox."""

from distil.cli import enter

if __name__ == "__main__":
    enter("demo_python_code.py")
