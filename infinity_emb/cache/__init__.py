"""Answers that are computed once: in memory, on disk, and shared by requests that are under way."""
