"""Databases with passwords."""
