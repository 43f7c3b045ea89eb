"""Compute the network of a model with OpenVINO."""
