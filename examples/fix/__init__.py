"""FIX over TCP: an acceptor that fills orders, and an initiator that survives lost connections."""
