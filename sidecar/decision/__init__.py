"""Forward-auth: the gate's decision for a proxy that does the forwarding itself."""
