"""Cards of datasets and students and their pictures, and what the stored targets of a dataset look like."""
