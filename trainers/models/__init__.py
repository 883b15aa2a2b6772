"""Zero-shot models: any that open_clip can load, and the built-in `tiny-clip`."""
