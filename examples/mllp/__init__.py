"""A service that takes HL7 messages: ``python -m examples.mllp.server``."""
