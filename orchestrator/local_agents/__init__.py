"""A team that needs no account and no network: a server on loopback with Lumenbridge's protocol, and its engines."""
