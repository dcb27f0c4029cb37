"""`edgekit keygen`: make the key pair that signs bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["keygen"]


def keygen(
    out: Annotated[Path, typer.Option(metavar="PREFIX", help="Write PREFIX.key (secret) and PREFIX.pub.")],
    password_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Encrypt the secret key with the first line of FILE."),
    ] = None,
) -> None:
    """Make an ed25519 key pair for signing bundles, in minisign's format.

    Sign with `edgekit export --sign-key PREFIX.key`, or with `minisign -S -s PREFIX.key`.
    """
    from edgekit.bundle.signing import generate_key_pair, read_password, write_key_pair

    secret_path, public_path = Path(f"{out}.key"), Path(f"{out}.pub")
    password = None if password_file is None else read_password(password_file)
    secret_key, public_key = generate_key_pair()
    write_key_pair(secret_key, secret_path, public_path, password=password)
    typer.echo(f"secret key  {secret_path}  (keep it on the build host, and a copy offline)")
    typer.echo(f"public key  {public_path}  (put it on every device as /etc/edgekit/edgekit.pub)")
    typer.echo(f"key id      {public_key.key_id}")
    typer.echo(f"as text     {public_key.to_base64()}")
    if password is None:
        typer.echo("The secret key is not encrypted; --password-file FILE makes an encrypted one.", err=True)
