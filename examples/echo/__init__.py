"""An echo over TCP."""
