"""Weights in 8 and 4 bits as qvl itself holds them: settings, the layer, how a module comes to have it."""
