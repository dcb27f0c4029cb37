"""`edgekit serve`: answer OpenAI-style HTTP from a bundle, and report over MQTT."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle
    from edgekit.bundle.keys import PublicKey
    from edgekit.profiles import ServeSettings

__all__ = ["adapt_settings", "serve"]


def serve(
    bundle: Annotated[Path, typer.Argument(help="Directory of a bundle, as `edgekit export` writes it.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8080,
    public_key: Annotated[
        str | None, typer.Option(help="Minisign public key, or its file; the bundle must be signed with it.")
    ] = None,
    integrity_only: Annotated[
        bool,
        typer.Option("--integrity-only", help="Serve without a public key: checks hashes, not who signed."),
    ] = False,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with one API key a line. Needed to listen beyond this machine.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by which a server without keys may be called, beside localhost; repeat for several."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web site whose pages may use the server, as https://NAME; repeat for several."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain in PEM: serves HTTPS. Needs --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key, in PEM.")] = None,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that running requests have to end after SIGTERM.", min=0.0)
    ] = 30.0,
    step_timeout: Annotated[
        float, typer.Option(help="Seconds after which a step of the engine counts as stuck.", min=1.0)
    ] = 120.0,
    write_timeout: Annotated[
        float, typer.Option(help="Seconds that a client has to read on.", min=0.1)
    ] = 30.0,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Context of one request, in tokens.", min=64)] = None,
    slots: Annotated[int | None, typer.Option(help="Streams decoded together.", min=1, max=64)] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            help="Broker to report to: mqtt://user:password@host:port (user and port may be left out), or mqtts://…"
            " In the environment, other users cannot see its password.",
            envvar="EDGEKIT_MQTT",
        ),
    ] = None,
    fleet: Annotated[str, typer.Option(help="Fleet this device reports as part of.")] = "default",
    device: Annotated[
        str | None, typer.Option(help="Name it reports under; its host name if not given.")
    ] = None,
    telemetry_interval: Annotated[float, typer.Option(help="Seconds between reports.", min=0.2)] = 10.0,
) -> None:
    """Serve BUNDLE over OpenAI-style HTTP, and report tokens/s over MQTT."""
    import logging
    import socket

    from edgekit.cli.trusted_key import choose_key
    from edgekit.errors import SignatureError, UsageError
    from edgekit.server.access import ApiKeys
    from edgekit.server.connection import ConnectionLimits
    from edgekit.server.front import Manners
    from edgekit.server.reporting import Reporting
    from edgekit.server.run import run_server
    from edgekit.server.tls import TlsFiles

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    key = choose_key(public_key, integrity_only=integrity_only)
    if key is None and not integrity_only:
        raise SignatureError(
            f"{bundle}: the signature cannot be checked: no public key is known",
            hint="give --public-key KEY.pub, put the key in /etc/edgekit/edgekit.pub, or accept that with "
            "--integrity-only",
        )
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together", hint="give both, or neither")

    def open_bundle(stop: threading.Event) -> tuple[Bundle, ServeSettings]:
        verified = _verify(bundle, key, stop)
        settings = adapt_settings(
            verified.manifest.plan.serve, threads=threads, context_tokens=context, slots=slots
        )
        return verified, settings

    run_server(
        open_bundle,
        host=host,
        port=port,
        keys=ApiKeys.from_file(api_key_file) if api_key_file is not None else None,
        tls=TlsFiles(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None,
        reporting=None
        if mqtt is None
        else Reporting(mqtt, fleet, device or socket.gethostname(), telemetry_interval),
        manners=Manners(
            drain_timeout_s=drain_timeout,
            step_timeout_s=step_timeout,
            connections=ConnectionLimits(write_timeout_s=write_timeout),
            allow_hosts=tuple(allow_host or ()),
            allow_origins=tuple(allow_origin or ()),
        ),
    )


def _verify(path: Path, key: PublicKey | None, stop: threading.Event) -> Bundle:
    import logging

    from edgekit.bundle.bundle import verify_bundle
    from edgekit.errors import EngineStoppedError

    def check_stop(_done: int, _total: int) -> None:
        if stop.is_set():
            raise EngineStoppedError(f"{path}: verifying was stopped")

    logging.getLogger(__name__).info("verifying %s", path)
    return verify_bundle(path, key, progress=check_stop)


def adapt_settings(
    settings: ServeSettings, *, threads: int | None, context_tokens: int | None, slots: int | None
) -> ServeSettings:
    """A bundle's settings with those of the command line in their place; None leaves what is there.

    Raises:
        UsageError: they do not go together.
    """
    from pydantic import ValidationError

    from edgekit.errors import UsageError
    from edgekit.profiles import ServeSettings

    given = {"threads": threads, "context_tokens": context_tokens, "slots": slots}
    values = settings.model_dump(exclude_unset=True)
    values |= {name: value for name, value in given.items() if value is not None}
    if values.get("kv_cells") is not None:
        # A context that was asked for must fit the cache; a larger cache is no harm to a smaller one.
        values["kv_cells"] = max(values["kv_cells"], values["context_tokens"])
    try:
        adapted = ServeSettings.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"the bundle cannot be served like that: {error.errors()[0]['msg']}") from error
    if adapted.slots > adapted.batch_tokens:
        raise UsageError(
            f"{adapted.slots} slots do not fit the bundle's batch of {adapted.batch_tokens} tokens",
            hint=f"give --slots {adapted.batch_tokens} or less, or export with a larger batch",
        )
    return adapted
