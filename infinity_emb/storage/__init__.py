"""Keep files from one start to the next."""
