"""Other vendors' routes: request in, engine call, response out; one module per vendor."""
