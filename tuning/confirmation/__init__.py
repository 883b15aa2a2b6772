"""What a search chose, on fresh seeds and on the test splits."""
