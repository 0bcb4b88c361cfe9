"""A dataset's rows, as they are asked for."""
