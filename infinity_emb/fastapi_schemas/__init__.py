"""Import names of infinity_emb 0.0.77, for servers that people write around an engine."""
