"""JSON Schema files of the messages, for readers that are not written in Python.

`python -m edgekit.telemetry.schemas` writes them anew from the models.
"""
