"""`imp_ds report RUN`: one page of a run, that needs nothing beside itself."""
