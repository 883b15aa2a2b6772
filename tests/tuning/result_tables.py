"""What a terminal shows of tables."""

import io

from rich.console import Console


def text_of(renderable, width=100):
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def printed(renderable, width):
    """Text on a terminal of this width; no line is longer and no cell is cut."""
    text = text_of(renderable, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text
