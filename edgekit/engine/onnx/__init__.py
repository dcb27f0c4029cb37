"""The second runtime: ONNX bundles by plain onnxruntime, behind the same scheduler.

Importing anything of this package needs what the extra `onnx` brings; the rest of edgekit does not.
"""

from __future__ import annotations

import importlib.util
import os

from edgekit.errors import MissingExtraError

# onnxruntime's releases report their use to Microsoft, and keep an id of the device, unless told not to
# before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

for _package in ("numpy", "onnxruntime", "tokenizers"):
    if importlib.util.find_spec(_package) is None:
        raise MissingExtraError(_package, extra="onnx", feature="running an ONNX model")
