"""Which rights keys do not need, judging by their recorded use: `sidecar suggest`."""
