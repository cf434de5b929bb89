"""Tensor functions that know no config and no module: attention, rotary angles, sampling."""
