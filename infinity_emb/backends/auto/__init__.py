"""`--engine auto`: load each installed engine, compare, keep the fastest."""
