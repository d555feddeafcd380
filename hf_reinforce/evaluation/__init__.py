"""Evaluation of classifiers on suites of datasets, and what it writes; see docs/evaluation.md."""
