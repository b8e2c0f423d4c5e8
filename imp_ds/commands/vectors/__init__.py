"""`imp_ds embed`, `search` and `demo`: vectors of files or sources in a Parquet file, and what in it is nearest to an item."""
