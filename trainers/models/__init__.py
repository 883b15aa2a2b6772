"""Zero-shot models: any that open_clip can load, and the embedded `tiny-clip`.

`config` is the section of the configuration; `architecture`, `weights` and `hub` find what it
names; `image`, `text` and `tokenizers` describe the two sides of a model; `loading` checks and
loads it.
"""
