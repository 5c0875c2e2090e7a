"""Networks and their weight files: teachers, the students of the paper, flight."""
