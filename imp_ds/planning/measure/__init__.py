"""Measuring a machine, for plans."""
