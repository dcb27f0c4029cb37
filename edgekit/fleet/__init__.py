"""The desk's side: what the devices of a fleet tell."""
