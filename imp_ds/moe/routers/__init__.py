"""Routers: how experts are chosen. Each is one class in a file of its own, and one line in `registry.py`."""
