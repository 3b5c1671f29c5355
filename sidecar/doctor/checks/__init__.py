"""What the doctor makes of what it found."""
