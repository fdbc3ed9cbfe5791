"""Plain text out of documents: encodings, markup, pages, source files."""
