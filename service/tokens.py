"""Who may do what: bearer tokens with scopes, from a file that may change while the server runs.

One line a token, `SHA256 SCOPES NAME`: the SHA-256 of the token in hexadecimal, `read`, `write` and `admin` joined by
commas, and a name for the log. Blank lines and lines that begin with `#` are left out. The token itself, any string
without spaces, is stored nowhere here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from service.errors import NotAuthenticated, NotPermitted, SettingsError

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_EXPECTED: Final = "expected `SHA256 SCOPES NAME`, for example `9f86...0a08 read,write uploader`"


class Scope(StrEnum):
    """What a token allows; none includes another."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Grant:
    """What the bearer of a token may do, and the name it has in the log."""

    name: str
    scopes: frozenset[Scope]


EVERYTHING: Final = Grant("anyone", frozenset(Scope))


class Tokens:
    """The tokens of a file, or none at all: then everybody may do everything."""

    def __init__(self, path: Path | None) -> None:
        """Raises SettingsError for a file that cannot be read or has no token."""
        self._path = path
        self._grants: Mapping[str, Grant] = {}
        self._changed_at = 0
        self.reload()

    def reload(self) -> bool:
        """Read the file again if it changed; raises SettingsError, with the old tokens kept. True when it did."""
        if self._path is None:
            return False
        try:
            changed_at = self._path.stat().st_mtime_ns
            if changed_at == self._changed_at:
                return False
            self._changed_at = changed_at
            self._grants = _read_grants(self._path)
        except OSError as error:
            raise SettingsError(f"the tokens file {self._path} cannot be read: {error.strerror}") from error
        return True

    def admit(self, authorization: str | None, scope: Scope) -> Grant:
        """The grant of an `authorization` header; raises NotAuthenticated or NotPermitted."""
        if self._path is None:
            return EVERYTHING
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise NotAuthenticated("a token is needed; send the metadata `authorization: Bearer TOKEN`")
        # Looking up a digest tells an attacker's clock nothing about the tokens.
        grant = self._grants.get(hashlib.sha256(token.encode()).hexdigest())
        if grant is None:
            raise NotAuthenticated("the token is not known here; ask the operator for one")
        if scope not in grant.scopes:
            raise NotPermitted(
                f"the token of {grant.name} has the scopes {', '.join(sorted(grant.scopes))}; this call needs {scope}"
            )
        return grant


def _read_grants(path: Path) -> dict[str, Grant]:
    grants = {}
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        digest, _, rest = line.strip().partition(" ")
        scopes, _, name = rest.strip().partition(" ")
        if not _SHA256.fullmatch(digest) or not name.strip() or not set(scopes.split(",")) <= set(Scope):
            raise SettingsError(f"line {number} of the tokens file {path} is wrong; {_EXPECTED}")
        grants[digest] = Grant(name.strip(), frozenset(Scope(scope) for scope in scopes.split(",")))
    if not grants:
        raise SettingsError(f"the tokens file {path} has no token; {_EXPECTED}")
    return grants
