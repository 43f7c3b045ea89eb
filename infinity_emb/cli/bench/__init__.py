"""The command `bench`: load a server that speaks OpenAI's, TEI's or Cohere's API, and report what it did."""
