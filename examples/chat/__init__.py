"""A chat over TCP."""
