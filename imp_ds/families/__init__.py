"""What the trainer knows of a kind of model: one package for each family, behind the protocol of `family.py`."""
