"""A run's folder: trace files, the run record and the failures, each written atomically."""

from distil.store.folder import (
    OnChange,
    OutputFolder,
    RunFolder,
    find_trace_files,
    first_free,
    open_run_folder,
)
from distil.store.spending import SpendingFile
from distil.store.trace_file import StoredCall, StoredTrace, read_trace

__all__ = [
    "OnChange",
    "OutputFolder",
    "RunFolder",
    "SpendingFile",
    "StoredCall",
    "StoredTrace",
    "find_trace_files",
    "first_free",
    "open_run_folder",
    "read_trace",
]
