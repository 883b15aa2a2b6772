"""Metrics of a model on the validation and test splits."""
