"""Zero-shot models: any that open_clip can load, and the embedded `tiny-clip`."""
