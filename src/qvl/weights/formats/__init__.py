"""Weights as other programs quantized and stored them, read into qvl's packed form without rounding."""
