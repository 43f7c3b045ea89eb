"""Resolve a model id to files, and detect the kind of model."""
