"""The command `data check`: looking at a corpus, and saying what was found."""
