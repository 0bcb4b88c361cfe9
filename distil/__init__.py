"""distil: concurrent distillation of visual tool-use traces that store only tool arguments."""

__version__ = "0.2.0"
