"""The blocks of the encoder: attention, its heads, the prompts that they see, the feed-forward or its experts."""
