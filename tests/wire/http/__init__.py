"""What the ops, admin and forward auth listeners do to attackers: the same."""
