"""Static embedding models: a table of token vectors and a mean."""
