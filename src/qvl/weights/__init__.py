"""Checkpoints and modules: names, files, loading, saving, placement and quantization.

Knows the modules it fills by their parameter names alone; what they compute is the network's business.
"""
