"""The load generator: requests at planned times against an OpenAI-compatible server."""
