"""Decoder architectures that edgekit's own graphs do not cover, exported by optimum in its own process."""
