"""Reinforced data sets as streams: rows and images are read in step, and nothing is downloaded as a whole."""
