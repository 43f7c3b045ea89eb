"""Quantize linear layers to int8 on CPUs."""
