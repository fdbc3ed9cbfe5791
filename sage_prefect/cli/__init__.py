"""L6: the ``sage`` command."""
