"""`imp_ds bench`: an exported model by the protocols of the field, in suites."""
