"""The layouts in which pictures lie on disks: one module each, from a source to listings."""
