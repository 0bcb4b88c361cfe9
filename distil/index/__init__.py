"""One row a trace in SQLite, derived from the trace files: filtered, sorted, searched."""
