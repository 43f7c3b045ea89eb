"""Compute the rows of files: read, compute, write, resume."""
