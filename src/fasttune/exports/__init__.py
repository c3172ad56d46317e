"""From a run folder to what other programs load, held against the run."""
