"""APIs of other vendors: routes, schemas and errors; one folder or module per vendor."""
