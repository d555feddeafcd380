"""Training on what is stored: the views, the dataset and its sampler, and images found by their hashes."""
