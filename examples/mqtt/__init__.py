"""An MQTT broker: ``python -m examples.mqtt.server``."""
