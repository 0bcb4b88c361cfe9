"""What a teacher can do, found out by asking it."""
