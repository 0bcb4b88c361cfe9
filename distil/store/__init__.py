"""A run's folder: trace files, the run record and the failures, each written atomically."""

from distil.store.folder import RunFolder, find_trace_files
from distil.store.trace_file import StoredCall, StoredTrace, read_trace

__all__ = ["RunFolder", "StoredCall", "StoredTrace", "find_trace_files", "read_trace"]
