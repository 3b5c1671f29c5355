"""What keys could do without, by what is recorded of their use: `sidecar suggest`."""
