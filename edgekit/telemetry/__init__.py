"""What a device tells its fleet: status, telemetry and events over MQTT, without slowing inference."""
