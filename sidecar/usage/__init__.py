"""How much keys are used, and what is unusual about it."""
