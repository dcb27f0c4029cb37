"""The proof that an artifact computes what its student does."""
