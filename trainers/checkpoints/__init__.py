"""Checkpoint files of one fine-tuning."""
