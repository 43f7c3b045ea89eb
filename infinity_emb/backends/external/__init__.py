"""Compute the network of a model with a library other than torch."""
