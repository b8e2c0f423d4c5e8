"""What a corpus holds."""
