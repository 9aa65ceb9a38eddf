"""A Modbus TCP server and client, which also talk to any others."""
