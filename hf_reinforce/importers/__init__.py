"""Datasets that others have reinforced, converted."""
