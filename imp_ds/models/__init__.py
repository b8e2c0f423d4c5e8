"""Model families in the Hugging Face layout, one folder each."""
