"""Batches made in time: workers, slots, collation."""
