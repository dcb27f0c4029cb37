"""The `edgekit` command: one module per verb, and the verb's function has the same name."""
