"""Sets of weights: interpolated, averaged, and exported for open_clip."""
