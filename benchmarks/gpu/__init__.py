"""Check the packed path on a GPU against a CPU, then measure it beside sentence-transformers.

Needs torch, transformers, sentence-transformers and numpy. Downloads nothing: the models have the shapes of
real ones and random weights.
"""
