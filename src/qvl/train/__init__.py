"""Fine-tuning on the network and the processing that serve: data, loss, LoRA, trainer, checkpoints."""
