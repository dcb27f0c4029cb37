"""Artifacts in the runtimes that devices have: logits for every position, and answers."""
