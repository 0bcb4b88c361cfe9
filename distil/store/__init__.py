"""A run's folder: trace files, the run record and the failures, each written atomically."""
