"""The child process that quantizes: `python -m export.quantize_worker IN OUT FILE_TYPE THREADS LOSSY [NPZ]`.

NPZ holds an importance matrix: float32 [columns] for each tensor, by its name.

llama.cpp aborts on some inputs; this process may die of it. Prints "<done> <total>" lines as tensors are
written, and what llama.cpp warns of on stderr.
"""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

_TENSOR_LINE = re.compile(rb"^\[\s*(\d+)/\s*(\d+)\]")
_WARNING, _ERROR, _CONTINUATION = 3, 4, 5


def main(arguments: list[str]) -> int:
    source, target, file_type, threads, lossy, *importance = arguments
    from edgekit.engine.llama_library import load_library

    bindings = load_library()
    level_before = 0

    def take_line(level: int, text: bytes, _user_data: Any) -> None:
        nonlocal level_before
        level_before = level = level_before if level == _CONTINUATION else level
        match = _TENSOR_LINE.match(text)
        if match:
            sys.stdout.write(f"{int(match[1])} {int(match[2])}\n")
            sys.stdout.flush()
        elif level in (_WARNING, _ERROR):
            sys.stderr.write(text.decode("utf-8", "replace"))

    callback = bindings.llama_log_callback(take_line)
    bindings.llama_log_set(callback, ctypes.c_void_p(0))
    parameters = bindings.llama_model_quantize_default_params()
    parameters.ftype = int(file_type)
    parameters.nthread = int(threads)
    parameters.allow_requantize = lossy == "1"
    kept = [_importance_array(bindings, path) for path in importance]
    if kept:
        parameters.imatrix = ctypes.cast(kept[0][0], type(parameters.imatrix))
    status = bindings.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
    sys.stderr.flush()
    return 1 if status else 0


class _Importance(ctypes.Structure):
    """struct llama_model_imatrix_data of llama.h; an entry without a name ends the list."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


def _importance_array(bindings: Any, path: str) -> tuple[Any, list[Any]]:
    """The list that llama.cpp reads, and what must stay alive as long as it does."""
    import numpy as np

    with np.load(path) as file:
        arrays = {name: np.ascontiguousarray(file[name], np.float32) for name in file.files}
    entries = (_Importance * (len(arrays) + 1))()
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries, list(arrays.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
