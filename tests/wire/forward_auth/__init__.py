"""Forward-auth: questions by raw sockets, and real proxies that ask them."""
