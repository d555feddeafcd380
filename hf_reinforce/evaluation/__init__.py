"""Evaluation of classifiers on suites of data sets, and what it writes; see docs/evaluation.md."""
