"""`doctor`: what stands in the way of training.

machine.py  what this machine has and lacks    recipe.py  what a recipe reads: data, models, stages
"""
