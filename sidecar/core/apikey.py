"""Format, checksum and digest of API keys. Randomness is the caller's."""
