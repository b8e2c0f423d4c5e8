"""What a run of Uni-MoE costs."""
