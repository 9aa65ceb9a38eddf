"""A server inside a program that has its own threads."""
