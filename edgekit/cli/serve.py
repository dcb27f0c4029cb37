"""`edgekit serve`: answer OpenAI-style HTTP from a bundle, and report over MQTT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serve"]


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
    threads: Annotated[int | None, typer.Option(help="Threads that compute.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Context of one request, in tokens.", min=64)] = None,
    slots: Annotated[int | None, typer.Option(help="Streams decoded together.", min=1, max=64)] = None,
    mqtt: Annotated[
        str | None, typer.Option(help="Broker to report to: mqtt://[user:password@]host[:port], or mqtts://…")
    ] = None,
    fleet: Annotated[str, typer.Option(help="Fleet this device reports as part of.")] = "default",
    device: Annotated[
        str | None, typer.Option(help="Name it reports under; its host name if not given.")
    ] = None,
    telemetry_interval: Annotated[float, typer.Option(help="Seconds between reports.", min=0.2)] = 10.0,
) -> None:
    """Serve BUNDLE over OpenAI-style HTTP, and report tokens/s over MQTT."""
    import logging
    import os
    import socket

    from edgekit.bundle.bundle import verify_bundle
    from edgekit.bundle.signing import find_public_key
    from edgekit.errors import SignatureError
    from edgekit.server.access import ApiKeys
    from edgekit.server.run import Reporting, run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    key = find_public_key(public_key, os.environ)
    if key is None and not integrity_only:
        raise SignatureError(
            f"{bundle}: the signature cannot be checked: no public key is known",
            hint="give --public-key KEY.pub, put the key in /etc/edgekit/edgekit.pub, or accept that with "
            "--integrity-only",
        )
    verified = verify_bundle(bundle, key)
    given = {"threads": threads, "context_tokens": context, "slots": slots}
    settings = verified.manifest.plan.serve.model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    run_server(
        verified,
        settings,
        host=host,
        port=port,
        keys=ApiKeys.from_file(api_key_file) if api_key_file is not None else None,
        reporting=None
        if mqtt is None
        else Reporting(mqtt, fleet, device or socket.gethostname(), telemetry_interval),
    )
