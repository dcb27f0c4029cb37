"""The key that a bundle's signature is checked with, as the options of a verb choose it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bundle.signing import PublicKey

__all__ = ["choose_key"]


def choose_key(public_key: str | None, *, integrity_only: bool) -> PublicKey | None:
    """The key of `--public-key`, else the one that this machine trusts; None when there is none.

    With `integrity_only` no key is looked for.

    Raises:
        UsageError: both options are given.
        SignatureError: the key is not one.
    """
    from edgekit.bundle.signing import find_public_key

    if not integrity_only:
        return find_public_key(public_key, os.environ)
    if public_key is not None:
        raise UsageError("--integrity-only does not look at the signature; leave out --public-key")
    return None
