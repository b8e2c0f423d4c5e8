"""Files, local or remote: caches, indexes, encodings."""
