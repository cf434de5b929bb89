"""Videos to patches: which frames the model sees, how large, and when they were shown."""
