"""From people's files and words to tensors, and from the model's text back to pixels. No network in here."""
