"""A live run through the real gateway, compared with its simulation."""
