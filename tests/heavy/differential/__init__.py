"""What the gate reads is what a real server behind it reads."""
