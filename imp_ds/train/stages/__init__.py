"""Recipes of several stages: each stage is trained in a process of its own on every rank, and exported when it is finished."""
