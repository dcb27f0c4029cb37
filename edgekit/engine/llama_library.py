"""The llama.cpp library, loaded once: its bindings, its log, its threads.

Only `llama_cpp.llama_cpp`, the ctypes declarations, is imported. The package's own `__init__` would bring
its high-level class with numpy, jinja2 and a disk cache: 24 MB and 0.3 s that a device does not need.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import sys
import threading
import types
from functools import cache
from typing import Any

import psutil

from edgekit.errors import EngineError, MissingExtraError
from edgekit.weight_buffers import isa_of_build

__all__ = [
    "ThreadPool",
    "built_isa",
    "default_threads",
    "forget_reasons",
    "load_library",
    "reason_of_failure",
    "require_library",
]

log = logging.getLogger("edgekit.llama_cpp")

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
"""ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 continuation. Its info is a page per load."""

_recent: list[str] = []
_RECENT_LINES = 40


_loading = threading.Lock()


def load_library() -> Any:
    """The module `llama_cpp.llama_cpp`, with the backend initialised and its log sent to `logging`.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        EngineError: it is installed but its shared library cannot be loaded.
    """
    with _loading:
        return _load()


@cache
def _load() -> Any:
    bindings = _import_bindings()
    callback = bindings.llama_log_callback(_take_log_line)
    _keep_alive.append(callback)
    bindings.llama_log_set(callback, ctypes.c_void_p(0))
    bindings.llama_backend_init()
    return bindings


_keep_alive: list[Any] = []
"""C holds the log callback's address: Python must not free it."""


def built_isa() -> tuple[str, ...] | None:
    """Extensions that the installed llama.cpp rearranges weights for, by the names of /proc/cpuinfo.

    None: it is not installed.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    return tuple(sorted(isa_of_build(load_library().llama_print_system_info().decode())))


def require_library() -> list[str]:
    """Check that the library is installed, without loading it; returns where its package lies.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise MissingExtraError("llama-cpp-python", extra="llama", feature="running a GGUF model")
    return list(spec.submodule_search_locations)


def _import_bindings() -> Any:
    locations = require_library()
    if "llama_cpp" in sys.modules:
        return _import_or_explain()
    shell = types.ModuleType("llama_cpp")
    shell.__path__ = locations
    sys.modules["llama_cpp"] = shell
    try:
        return _import_or_explain()
    finally:
        # A later `import llama_cpp` by anyone else gets the whole package.
        sys.modules.pop("llama_cpp", None)


def _import_or_explain() -> Any:
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"llama-cpp-python is installed but its library cannot be loaded: {error}",
            hint="build it for this machine with: edgekit runtime install",
        ) from error


def _take_log_line(level: int, text: bytes, _user_data: Any) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if not line.strip("."):
        return
    log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)
    if level in (3, 4):
        _recent.append(line)
        del _recent[:-_RECENT_LINES]


def forget_reasons() -> None:
    """Begin a call whose failure is to be explained: what was logged before has nothing to do with it."""
    _recent.clear()


def reason_of_failure() -> str:
    """Why the call gave nothing, in the library's own words."""
    # The last error only repeats that loading failed; the first one says why.
    lines = [line.partition(": ")[2] or line for line in _recent]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it gave no reason")


def default_threads() -> int:
    """Threads to compute with: physical cores that this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


class _ThreadPoolParams(ctypes.Structure):
    """struct ggml_threadpool_params of ggml.h; GGML_MAX_N_THREADS is 512."""

    _fields_ = [
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    ]


class ThreadPool:
    """ggml worker threads that live as long as the context that uses them.

    Without a pool, ggml starts and joins its threads for every decoded token.
    """

    def __init__(self, library: Any, threads: int) -> None:
        self._native = library._lib
        self._native.ggml_threadpool_params_init.argtypes = [ctypes.POINTER(_ThreadPoolParams), ctypes.c_int]
        self._native.ggml_threadpool_params_init.restype = None
        self._native.ggml_threadpool_new.argtypes = [ctypes.POINTER(_ThreadPoolParams)]
        self._native.ggml_threadpool_new.restype = ctypes.c_void_p
        self._native.ggml_threadpool_free.argtypes = [ctypes.c_void_p]
        self._native.ggml_threadpool_free.restype = None
        self._native.llama_attach_threadpool.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self._native.llama_attach_threadpool.restype = None
        params = _ThreadPoolParams()
        self._native.ggml_threadpool_params_init(ctypes.byref(params), threads)
        self._pool = self._native.ggml_threadpool_new(ctypes.byref(params))
        if not self._pool:
            raise EngineError(f"cannot start {threads} compute threads")

    def attach(self, context: Any) -> None:
        """Let a llama_context compute on these threads, for decode and prefill alike."""
        self._native.llama_attach_threadpool(context, self._pool, None)

    def close(self) -> None:
        """End the threads. The context must be freed, or must not compute any more."""
        if self._pool:
            self._native.ggml_threadpool_free(self._pool)
            self._pool = None
