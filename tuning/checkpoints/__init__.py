"""Checkpoint files of the trials of a search."""
