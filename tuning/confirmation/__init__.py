"""Confirmation of chosen trials with fresh seeds on the test splits."""
