"""What a run measures of samples that it does not train on, while it trains, and what follows from it: which checkpoint is the
best so far, and when to stop."""
