"""OpenAI's Files and Batch APIs: requests of a file, computed in the bulk lane."""
