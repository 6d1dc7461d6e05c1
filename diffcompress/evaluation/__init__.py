"""What a student is worth: distances, agreement, failed samples, costs, gates."""
