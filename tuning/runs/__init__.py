"""The run folder: what happened in a search, and how it continues."""
