"""What is wrong with an installation: looked at first, judged by pure functions afterwards."""
