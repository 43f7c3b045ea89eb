"""Compute batches: one folder per library, behind the interfaces in `base`."""
