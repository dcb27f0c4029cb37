"""What a student becomes on a device: format, quantization, types of its tensors, settings. Pure."""
