"""edgekit: serve, watch and update quantized DeepSeek-R1 students on edge devices.

This package is what runs on devices, gateways and desks. What runs on a build host is `export`.
"""

__version__ = "0.1.0"
