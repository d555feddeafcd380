"""Importing the archives that the original implementation of dataset reinforcement published."""

from hf_reinforce.importers.ml_dr.importer import import_ml_dr

__all__ = ["import_ml_dr"]
