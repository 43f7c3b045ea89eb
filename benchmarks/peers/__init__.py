"""Other servers of the same model, each in an environment of its own, measured in turn with ours."""
