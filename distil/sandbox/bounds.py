"""The bounds of a call where nothing else is said: apart, so that the flags have them without the rest."""

TIMEOUT_SECONDS = 10.0
MEMORY_BYTES = 2 * 1024**3
