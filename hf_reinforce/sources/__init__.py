"""Datasets as users have them: loaded by name, read by row, with errors that say what is wrong with a file."""
