"""The arms of a training benchmark: one process each, which trains on command."""
