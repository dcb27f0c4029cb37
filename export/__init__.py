"""What runs on a build host: reads a student, plans, writes, proves and seals a bundle."""
