"""Reinforcing: what `datasets.map` maps, the run around it, and its cost."""
