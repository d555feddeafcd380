"""What a teacher says about a view, as a column: encoded, read back, checked, turned into a loss."""
