"""Many samples: one run from its flags to its exit code."""
