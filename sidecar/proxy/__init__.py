"""The data listener: aiohttp in, our own connection pool out."""
