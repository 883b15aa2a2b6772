"""Getting a search onto machines; for now a search is submitted with Ray's own `ray job submit`."""
