"""Verbs of the export side, found by `edgekit` through entry points."""
