"""What an exported folder has beside the model: its code, what sentence-transformers reads, and the way to the Hub."""
