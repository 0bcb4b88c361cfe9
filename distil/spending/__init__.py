"""What it costs: bounded during a run, known before it."""
