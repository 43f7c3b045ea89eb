"""Show where the time of a request goes: `infinity_emb profile`."""
