"""Data: sources, decoding, collation, the rotating loader and the digits corpus."""
