"""A trace and its row: every picture again, and the whole trace compared."""
