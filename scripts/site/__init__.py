"""Build the documentation site: pages generated from code, links, and the hooks of MkDocs."""
