"""A bundle: a directory with a model, a manifest of what is in it, and a signature over the manifest."""
