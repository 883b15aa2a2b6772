"""Selection rules: which trial to choose after a search."""
