"""Networks by their names: teachers, students, what they take and which classes they answer with."""
