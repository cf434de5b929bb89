"""Configs and models with random weights, from nothing.

    python docs/examples/configuration.py [DEVICE]

The defaults describe a model of 72 billion parameters, so DEVICE is "meta" (shapes without storage) unless
you say otherwise.
"""

import sys

import torch

from qvl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLTextModel


def main(device: str = "meta") -> tuple[int, int]:
    # Initializing a Qwen2_5_VL style configuration
    configuration = Qwen2_5_VLConfig()

    with torch.device(device):
        # Initializing a model from that configuration
        model = Qwen2_5_VLForConditionalGeneration(configuration)
        # ... and the text decoder alone
        text_model = Qwen2_5_VLTextModel(configuration)

    # Accessing the model configuration
    configuration = model.config
    print(configuration.text_config.hidden_size, text_model.config.num_hidden_layers)
    return model.num_parameters(), text_model.num_parameters()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
