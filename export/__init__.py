"""What runs on a build host: reads a student, plans, writes, proves and seals a bundle."""

import os

# onnxruntime's releases report its use over HTTPS and keep a device id, unless this is set before it is
# loaded (its Privacy.md). Who sets it otherwise has decided; child processes inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
