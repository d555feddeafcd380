"""Cards of data sets and of students, and their pictures."""
