"""Compute the encoder of a network with CTranslate2."""
