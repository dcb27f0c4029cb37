"""The exceptions that edgekit raises on purpose.

    EdgekitError                 something failed and we know what: exit code 1
    ├── UsageError               the command or its arguments are wrong: exit code 2
    ├── MissingExtraError        an optional package is not installed
    ├── ProfileError             a device profile is not valid
    ├── ModelFileError           a model file is damaged, unsafe or not of a known kind
    ├── BundleError              a bundle cannot be trusted or used
    │   ├── ManifestError        manifest.json is missing or not valid
    │   ├── IntegrityError       a file is missing, extra or not what the manifest says
    │   └── SignatureError       a signature or key is missing, malformed or does not match
    ├── ExportError              an export could not be done; nothing was written
    │   └── PlanError            the model does not fit the profile
    ├── EngineError              the inference engine failed
    │   ├── ContextOverflowError the prompt does not fit the context
    │   ├── ConstraintError      an answer cannot be given the form that is asked for
    │   ├── DeadlineExceededError  a request took longer than it may
    │   ├── EngineBusyError      the engine's queue is full
    │   └── EngineStoppedError   the engine is being shut down
    ├── TelemetryError           the broker or its address is not usable
    └── ToolchainError           a build tool failed or is missing

A message says what went wrong and where; `hint` says what to do next. The library raises; the edges
translate: the command line to stderr and an exit code, the server to an OpenAI error body.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "ConstraintError",
    "ContextOverflowError",
    "DeadlineExceededError",
    "EdgekitError",
    "EngineBusyError",
    "EngineError",
    "EngineStoppedError",
    "ExportError",
    "IntegrityError",
    "ManifestError",
    "MissingExtraError",
    "ModelFileError",
    "PlanError",
    "ProfileError",
    "SignatureError",
    "TelemetryError",
    "ToolchainError",
    "UsageError",
]


class EdgekitError(Exception):
    """Root of all errors raised on purpose. `hint` is the next step for the reader, or None."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"


class UsageError(EdgekitError):
    """The command or its arguments are wrong."""

    exit_code = 2


class MissingExtraError(EdgekitError):
    """A feature needs a package of an extra that is not installed.

    Args:
        package: the distribution that is missing, e.g. "llama-cpp-python".
        extra: the extra that brings it, e.g. "llama".
        feature: what was asked for, e.g. "serving a GGUF bundle".
    """

    def __init__(self, package: str, *, extra: str, feature: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed",
            hint=f"install it with: pip install 'edgekit[{extra}]'",
        )
        self.package = package
        self.extra = extra


class ProfileError(EdgekitError):
    """A device profile is not valid, or no profile has the given name."""


class ModelFileError(EdgekitError):
    """A model file is damaged, unsafe to load, or of no known kind."""


class BundleError(EdgekitError):
    """A bundle cannot be trusted or used."""


class ManifestError(BundleError):
    """manifest.json is missing or does not follow the schema."""


class IntegrityError(BundleError):
    """A file of the bundle is missing, extra, or differs from its manifest entry."""


class SignatureError(BundleError):
    """A signature or key is missing, malformed, or does not match."""


class ExportError(EdgekitError):
    """An export could not be done. Nothing was left behind."""


class PlanError(ExportError):
    """The model does not fit the profile as asked."""


class EngineError(EdgekitError):
    """The inference engine failed."""


class ContextOverflowError(EngineError):
    """The prompt, or the prompt and its answer, do not fit the context.

    Args:
        prompt_tokens: length of the prompt, in tokens.
        context_tokens: what one request may use, in tokens.
    """

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and the context holds {context_tokens}",
            hint="shorten the messages, or serve the bundle with a larger context",
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class ConstraintError(EngineError):
    """A JSON Schema or grammar is not valid, or asks for what is not supported."""


class DeadlineExceededError(EngineError):
    """A request took longer than it may.

    Args:
        deadline_s: what it may take, in seconds.
    """

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"the request was not done within {deadline_s:g} s")
        self.deadline_s = deadline_s


class EngineBusyError(EngineError):
    """The engine's queue is full.

    Args:
        queued: requests waiting now.
        retry_after_s: estimated seconds until a place is free.
    """

    def __init__(self, queued: int, retry_after_s: float) -> None:
        super().__init__(f"the queue is full: {queued} requests are waiting")
        self.queued = queued
        self.retry_after_s = retry_after_s


class EngineStoppedError(EngineError):
    """The engine is being shut down and takes no more requests."""


class TelemetryError(EdgekitError):
    """The broker, its address or its credentials are not usable."""


class ToolchainError(EdgekitError):
    """A build tool is missing or failed."""
