"""Both ends show certificates (mutual TLS)."""
