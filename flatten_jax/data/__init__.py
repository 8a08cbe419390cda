"""From pictures on disk to batches of uint8 NumPy arrays. Nothing here knows a model or touches a device."""
