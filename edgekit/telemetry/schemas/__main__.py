"""Writes the JSON Schema files beside this one."""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.telemetry.messages import json_schema
from edgekit.telemetry.topics import KINDS

for kind in KINDS:
    text = json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n"
    (Path(__file__).parent / f"{kind}.schema.json").write_text(text, encoding="utf-8")
