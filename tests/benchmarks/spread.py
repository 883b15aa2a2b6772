"""How the tables of benchmarks show several values of one figure."""

from statistics import median


def spread(values, digits=".2f", middle=median):
    """The middle of the values and their range, if they differ; nothing for no values."""
    if not values:
        return ""
    least, most = f"{min(values):{digits}}", f"{max(values):{digits}}"
    return f"{middle(values):{digits}}" + (f" ({least} to {most})" if least != most else "")
