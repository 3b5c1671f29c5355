"""What README and the guide tell people to type works, in the order in which it stands there."""
