"""From rows to ids, labels and spans; on disk, and in batches."""
