"""Running trials on Ray."""
