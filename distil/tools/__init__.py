"""The tools that a teacher may call: a schema and two pure functions each."""
