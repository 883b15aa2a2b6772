"""Keeping secrets out of logs, and servers off the network."""
