"""What the student learns from: the teacher's samples and its stored outputs."""
