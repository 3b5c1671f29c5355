"""The hardened server's pure part."""
