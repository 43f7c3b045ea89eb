"""Read requests: body, options, client, disconnects."""
