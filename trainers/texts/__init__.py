"""Texts: class prompts, random texts, and texts of the user."""
