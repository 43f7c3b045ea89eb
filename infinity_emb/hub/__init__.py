"""Resolve a model id to files, and detect what kind of model they are."""
