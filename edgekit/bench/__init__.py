"""How fast a bundle is on this machine, layer by layer, and how near to what its memory allows."""
