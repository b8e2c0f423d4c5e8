"""A dense encoder starts from a tower that others have trained, in the files of transformers."""
