"""TLS, mutual TLS and tokens, with certificates made for the test."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.certificates import CertificateFiles
from service.client import NearDupClient
from service.errors import CallFailed, NotAuthenticated, NotPermitted, SettingsError
from service.tokens import Scope, Tokens
from tests.service.conftest import Serve
from tests.service.corpora import random_embeddings

EMBEDDING = random_embeddings(1)[0]
DAY = timedelta(days=1)


class Authority:
    """A certificate authority of the test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(self._name, self._key.public_key(), DAY, is_authority=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, expires: timedelta = DAY) -> tuple[Path, Path]:
        """A certificate for localhost and its key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), expires)
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, expires: timedelta, *, is_authority: bool = False
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + expires)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A tokens file with a reader, a writer and an administrator, whose tokens are their names."""
    lines = ["# who may do what", ""]
    for name in ("read", "write", "admin"):
        lines.append(f"{hashlib.sha256(name.encode()).hexdigest()} {name} the {name}er")
    lines.append(f"{hashlib.sha256(b'all').hexdigest()} read,write,admin everything")
    path = tmp_path / "tokens"
    path.write_text("\n".join(lines) + "\n")
    return path


def served_certificates(authority: Authority, **options: timedelta) -> CertificateFiles:
    certificate, key = authority.issue("server", **options)
    return CertificateFiles(certificate=certificate, key=key)


def code_of(call: Callable[[], object]) -> str:
    """The status code with which a call fails, OK when it does not."""
    try:
        call()
    except CallFailed as failed:
        return failed.code
    return "OK"


def calls(client: NearDupClient) -> dict[Scope, list[Callable[[], object]]]:
    """Every call, by the scope that it needs."""
    return {
        Scope.READ: [lambda: client.lookup(EMBEDDING), client.status, lambda: list(client.cluster("image-1"))],
        Scope.WRITE: [
            lambda: client.register("image-0", EMBEDDING),
            lambda: client.lookup_or_register("image-0", EMBEDDING),
            lambda: client.remove("nobody"),
        ],
        Scope.ADMIN: [client.generations, lambda: client.promote("0" * 16), client.rollback],
    }


@pytest.mark.parametrize("token", ["read", "write", "admin"])
def test_a_token_opens_its_scope_and_no_other(serve: Serve, tokens: Path, token: str) -> None:
    """Over TLS; the message names the scopes that the token has and the one that was needed."""
    with serve(tokens=tokens) as running, running.client(token=token) as client:
        for scope, own_calls in calls(client).items():
            codes = {code_of(call) for call in own_calls}
            if scope == token:
                assert not codes & {"PERMISSION_DENIED", "UNAUTHENTICATED"}
            else:
                assert codes == {"PERMISSION_DENIED"}
                with pytest.raises(CallFailed, match=f"has the scopes {token}; this call needs {scope}"):
                    own_calls[0]()


@pytest.mark.parametrize("token", [None, "unknown", "", "x" * 5000])
def test_without_a_known_token_nothing_is_answered(serve: Serve, tokens: Path, token: str | None) -> None:
    """UNAUTHENTICATED for every call, streams included; health is open to balancers."""
    with serve(tokens=tokens) as running, running.client(token=token) as client:
        for own_calls in calls(client).values():
            assert {code_of(call) for call in own_calls} == {"UNAUTHENTICATED"}
        assert code_of(lambda: list(client.lookup_many(iter(())))) == "UNAUTHENTICATED"


def test_tls_with_a_token(serve: Serve, tokens: Path, authority: Authority) -> None:
    """The usual production setting."""
    with serve(tokens=tokens, certificates=served_certificates(authority)) as running:
        with running.client(token="all", authority=authority.file) as client:
            assert client.lookup(EMBEDDING).matches[0].image_id == "image-0"
        with running.client(token="all", timeout_s=5.0) as plain:
            assert code_of(plain.status) == "UNAVAILABLE"


def test_a_server_of_a_foreign_authority_is_not_trusted(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    """The client refuses before it sends a token."""
    foreign = Authority(tmp_path, "foreign")
    with (
        serve(certificates=served_certificates(foreign)) as running,
        running.client(authority=authority.file, timeout_s=5.0) as client,
    ):
        assert code_of(client.status) == "UNAVAILABLE"


def test_an_expired_certificate_of_a_server_is_refused(serve: Serve, authority: Authority) -> None:
    """By the client, in its handshake."""
    with (
        serve(certificates=served_certificates(authority, expires=-DAY)) as running,
        running.client(authority=authority.file, timeout_s=5.0) as client,
    ):
        assert code_of(client.status) == "UNAVAILABLE"


def test_mutual_tls_asks_clients_for_a_valid_certificate(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """None, an expired one and a foreign one are all refused."""
    certificate, key = authority.issue("server")
    files = CertificateFiles(certificate=certificate, key=key, client_authority=authority.file)
    foreign = Authority(tmp_path, "foreign")
    expected = {
        "OK": authority.issue("client"),
        "expired": authority.issue("late", expires=-DAY),
        "foreign": foreign.issue("stranger"),
        "none": (None, None),
    }
    with serve(certificates=files) as running:
        for name, (own, own_key) in expected.items():
            with running.client(authority=authority.file, certificate=own, key=own_key, timeout_s=5.0) as client:
                assert code_of(client.status) == ("OK" if name == "OK" else "UNAVAILABLE"), name


def test_certificates_are_reloaded(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """New connections see the new certificate, a broken file is not taken, and no restart is needed."""
    files = served_certificates(authority)
    with serve(certificates=files) as running, running.client(authority=authority.file) as client:
        client.status()
        files.certificate.write_text("half written")
        with running.client(authority=authority.file) as meanwhile:
            meanwhile.status()
        successor = Authority(tmp_path, "successor")
        served_certificates(successor)
        with running.client(authority=successor.file, timeout_s=10.0) as newer:
            newer.status()
        with running.client(authority=authority.file, timeout_s=3.0) as older:
            assert code_of(older.status) == "UNAVAILABLE"
        client.status()


@pytest.mark.parametrize("kind", ["missing", "not PEM", "key of another"])
def test_a_certificate_that_cannot_be_used_stops_the_start(serve: Serve, authority: Authority, kind: str) -> None:
    """The error names the files."""
    files = served_certificates(authority)
    if kind == "missing":
        files.key.unlink()
    elif kind == "not PEM":
        files.certificate.write_bytes(bytes(100))
    else:
        _, other = authority.issue("other")
        files = CertificateFiles(certificate=files.certificate, key=other)

    with pytest.raises(SettingsError, match=r"server\.crt .* cannot be used"), serve(certificates=files):
        pass


def test_tokens_are_reloaded(serve: Serve, tokens: Path) -> None:
    """A revoked token fails a moment later; a broken file changes nothing."""
    with serve(tokens=tokens) as running, running.client(token="read") as client:
        client.status()
        tokens.write_text("not a token")
        time.sleep(0.5)
        client.status()
        tokens.write_text(f"{hashlib.sha256(b'other').hexdigest()} read someone\n")
        deadline = time.monotonic() + 20
        while code_of(client.status) == "OK":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with running.client(token="other") as other:
            other.status()


@pytest.mark.parametrize(
    "text", ["", "# only a remark\n", "abc read someone\n", f"{'0' * 64} read\n", f"{'0' * 64} read,root someone\n"]
)
def test_a_tokens_file_must_have_tokens(tmp_path: Path, text: str) -> None:
    """A server that nobody can use, or a line that says less than it seems to, is refused at start."""
    path = tmp_path / "tokens"
    path.write_text(text)

    with pytest.raises(SettingsError, match="SHA256 SCOPES NAME"):
        Tokens(path)


@pytest.mark.parametrize("header", [None, "", "read", "Basic read", "Bearer", "Bearer  read", "Bearer nobody"])
def test_only_a_bearer_token_counts(tokens: Path, header: str | None) -> None:
    """Anything else in the header is no token."""
    with pytest.raises(NotAuthenticated):
        Tokens(tokens).admit(header, Scope.READ)


def test_the_grant_has_the_name_of_the_line(tokens: Path) -> None:
    """For the log; without a file everybody may do everything."""
    assert Tokens(tokens).admit("Bearer read", Scope.READ).name == "the reader"
    assert Tokens(None).admit(None, Scope.ADMIN).name == "anyone"
    with pytest.raises(NotPermitted):
        Tokens(tokens).admit("bearer read", Scope.ADMIN)
