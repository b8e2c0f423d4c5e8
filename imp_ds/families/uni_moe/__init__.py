"""Uni-MoE for the trainer: its settings, how its parts are loaded, its losses and evaluators."""
