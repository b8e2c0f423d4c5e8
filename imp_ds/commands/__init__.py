"""What the commands do, one file for each; `imp_ds.cli` declares them."""
