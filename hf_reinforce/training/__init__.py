"""The Trainer, its arguments, the average of the weights, and checkpoints."""
