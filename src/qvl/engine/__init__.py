"""The one engine: a scheduler without torch, a runner that owns the tensors, and one decoding loop."""
