"""Compute sentence-transformers models with torch, without padding where the model allows it."""
