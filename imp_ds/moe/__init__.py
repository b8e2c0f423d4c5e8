"""Mixture of experts: routing, experts, dispatch and the layer. Knows nothing of modalities or of DeepSpeed."""
