"""The bodies that requests have and the answers they get, as pydantic models.

Reference: the OpenAI API as the `openai` package 3.54 has it, and llama-server's own routes. Each field of a
request is one of three: it does what it does there; it has no meaning on a device and is ignored (`Ignored`);
or it is refused by name (`NotSupported`), since the answer would not be what was asked for. Fields that
nobody knows are refused as well: a misspelt `max_token` should not be ignored silently.
"""
