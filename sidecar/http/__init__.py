"""The hardened aiohttp server under ops, admin and forward auth."""
