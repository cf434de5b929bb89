"""The network itself: nn.Modules on packed tokens, named as the checkpoints name their tensors."""
