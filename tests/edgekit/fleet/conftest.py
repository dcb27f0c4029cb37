"""The brokers of the telemetry tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# A conftest cannot import that of another folder by name.
_spec = importlib.util.spec_from_file_location(
    "edgekit_telemetry_conftest", Path(__file__).parent.parent / "telemetry" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_telemetry = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_telemetry)

amqtt = _telemetry.amqtt
make_mosquitto = _telemetry.make_mosquitto
mosquitto = _telemetry.mosquitto
engine = _telemetry.engine
sensors = _telemetry.sensors
record = _telemetry.record
