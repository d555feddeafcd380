"""Side-by-side measurements of the package against what its users would do without it: `python -m benchmarks`."""
