"""Databases with passwords, and the exposure of servers on the network."""
