"""Evaluation of the zero-shot model on its own."""
