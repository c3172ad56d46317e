"""The arms of a benchmark: one process each, which trains when it is told to."""
