"""Tar files: what lies where, from their headers alone."""
