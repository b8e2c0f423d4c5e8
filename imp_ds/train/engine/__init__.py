"""One optimizer step: everything that knows DeepSpeed."""
