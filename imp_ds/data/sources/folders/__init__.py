"""Rows of folders: lines of metadata, a folder for each class, a caption beside each file."""
