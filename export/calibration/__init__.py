"""Which of a student's columns matter: texts, its activations on them, the importance matrix."""
