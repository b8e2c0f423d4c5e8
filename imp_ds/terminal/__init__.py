"""What goes to a terminal: text from anybody, progress, the end by Ctrl-C."""
