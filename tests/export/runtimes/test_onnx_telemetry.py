from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).resolve().parents[2] / "fixtures" / "optimum_gpt2"


def test_onnxruntime__reports_nothing_and_leaves_no_device_id(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom export.runtimes.optimum_decoder import OptimumDecoder\n"
        "OptimumDecoder(Path(sys.argv[1])).logits([1, 2, 3])"
    )
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environ |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(MODEL)], env=environ, check=True)
    assert list(tmp_path.iterdir()) == []
