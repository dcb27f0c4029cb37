"""Inference: requests of tokens go in, events of text come out, and one thread runs the model."""
