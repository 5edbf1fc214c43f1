"""TLS of the server: its certificate, optionally the authority that clients' certificates must come from.

The files are read again when they changed, at the next handshake; a half-written or foreign pair is never taken, and
connections that stand are left alone.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from service.errors import SettingsError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """PEM files: the certificate chain, its key, and the authority that clients' certificates must then come from."""

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def changed_at(self) -> tuple[int, ...]:
        paths = (self.certificate, self.key, self.client_authority)
        return tuple(path.stat().st_mtime_ns for path in paths if path is not None)


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials that follow their files; raises SettingsError when they cannot be used now."""
    seen = files.changed_at() if files.certificate.exists() and files.key.exists() else ()
    initial = _configuration(files)

    def fetch() -> Any:
        nonlocal seen
        try:
            changed_at = files.changed_at()
            if changed_at == seen:
                return None
            seen = changed_at
            configuration = _configuration(files)
        except (OSError, SettingsError) as error:
            log.error("the certificate was not reloaded", extra={"reason": str(error)})
            return None
        log.info("the certificate was reloaded", extra={"certificate": str(files.certificate)})
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        initial, fetch, require_client_authentication=files.client_authority is not None
    )


def _configuration(files: CertificateFiles) -> grpc.ServerCertificateConfiguration:
    try:
        # OpenSSL says what is wrong with a pair; gRPC would take it and fail every handshake.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)
        authority = files.client_authority
        if authority is not None:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        return grpc.ssl_server_certificate_configuration(
            [(files.key.read_bytes(), files.certificate.read_bytes())],
            root_certificates=None if authority is None else authority.read_bytes(),
        )
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the certificate {files.certificate} with the key {files.key} cannot be used: {error}; "
            "give PEM files that belong together"
        ) from error
