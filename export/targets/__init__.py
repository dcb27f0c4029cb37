"""Writers of what devices run: one module per format."""
