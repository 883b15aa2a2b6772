"""Consecutive ports that nothing uses."""

import random
import socket
from contextlib import ExitStack


def free_ports(count):
    """First of so many free ports below 32,768, where Linux takes those of outgoing connections."""
    while True:
        first = random.SystemRandom().randrange(20_000, 32_000)
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
