"""What a run of IMP costs, by arithmetic: tokens, FLOPs, memory."""
