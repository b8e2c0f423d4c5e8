"""What is measured of an IMP model; each evaluator has its line in `imp_ds.registry`."""
