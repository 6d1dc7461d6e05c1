"""The training loop: steps, optimizers, averaged weights, checkpoints."""
