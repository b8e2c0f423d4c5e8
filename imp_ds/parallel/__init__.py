"""Process groups, gather with gradient, and the expert-parallel layer that DeepSpeed recognises."""
