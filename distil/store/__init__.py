"""A run's folder: trace files, the run record and the failures, each written atomically."""

from distil.store.folder import OnChange, RunFolder, find_trace_files, free_folder, read_runs
from distil.store.spending import SpendingFile
from distil.store.trace_file import StoredCall, StoredTrace, read_trace

__all__ = [
    "OnChange",
    "RunFolder",
    "SpendingFile",
    "StoredCall",
    "StoredTrace",
    "find_trace_files",
    "free_folder",
    "read_runs",
    "read_trace",
]
