"""Write responses: vectors, models, errors."""
