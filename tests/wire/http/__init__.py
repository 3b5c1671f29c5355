"""The ops, admin and forward-auth listeners treat attackers alike."""
