"""What a Uni-MoE model is measured by."""
