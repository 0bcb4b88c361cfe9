"""Looking at traces: facts and totals of any trace format, and their form in the terminal."""
