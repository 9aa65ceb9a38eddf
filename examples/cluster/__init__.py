"""A chat on several servers, joined over Redis; ``python -m examples.cluster`` starts it all."""
