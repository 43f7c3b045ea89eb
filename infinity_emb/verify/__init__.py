"""`infinity_emb verify`: compare served outputs with sentence-transformers."""
