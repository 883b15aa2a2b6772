"""What happened: the run folder, its journal, and how a search continues from it."""
