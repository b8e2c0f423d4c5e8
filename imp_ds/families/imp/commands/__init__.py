"""Commands that only IMP has: tuning on little data, and upcycling a dense encoder."""
