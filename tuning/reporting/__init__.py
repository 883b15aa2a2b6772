"""What a search found, for people and as tables."""
