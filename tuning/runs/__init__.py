"""The run folder: what happened in a search, what follows from that alone, and how it continues."""
