"""From formats or runs to a verdict and a report: planned, trained, measured, shown."""
