"""Cache the outputs of a model, in memory and on disk."""
