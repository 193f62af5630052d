"""Signs statements with cosign, and checks what cosign signed; it reads and writes files, never a registry."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, process
from kiln.registry import records as registry

if TYPE_CHECKING:
    from kiln.publish.statements import Statement

PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 - the name of a variable
_TIMEOUT_S = 300
_PREFIX = ".publish."  # the next publication sweeps what a killed one has left
_INSTALL = "install cosign 3 or newer: https://docs.sigstore.dev/cosign/system_config/installation"


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs with a key, a file or a KMS address; an empty `key` means keyless, by the identity of who runs it.

    Its files lie under `scratch`, None for the system's folder.
    """

    cosign: str
    key: str
    scratch: Path | None = None

    def sign(self, statement: Statement) -> bytes:
        """Return the Sigstore bundle that holds the statement, signed.

        With a key nothing leaves this machine. Keyless signing is what cosign does by itself: a certificate from
        Fulcio, an entry in Rekor.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix=_PREFIX) as name:
            folder = Path(name)
            said, bundle = folder / "statement.json", folder / "bundle.json"
            said.write_bytes(statement.data)
            by = _with_key(self.cosign, self.key, folder) if self.key else ()
            argv = (self.cosign, "attest-blob", "--yes", *by, f"--statement={said}", f"--bundle={bundle}")
            _ask(argv)
            return bundle.read_bytes()

    def public_key(self) -> str:
        """Return the PEM of the key's public half; it is what others verify with."""
        return _ask((self.cosign, "public-key", f"--key={self.key}"))


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Checks bundles against a public key, or against an identity and who vouches for it; `scratch` as above."""

    cosign: str
    key: str = ""
    identity: str = ""
    issuer: str = ""
    scratch: Path | None = None

    @property
    def whose(self) -> str:
        return f"the key {self.key}" if self.key else f"{self.identity} ({self.issuer})"

    def problem(self, bundle: bytes, *, kind: str, digest: str) -> str:
        """Return why a bundle is not signed by who should have, or not about `digest`; empty when all is well."""
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix=_PREFIX) as name:
            folder = Path(name)
            path = folder / "bundle.json"
            path.write_bytes(bundle)
            about = (f"--type={kind}", f"--digest={digest.partition(':')[2]}", "--digestAlg=sha256")
            argv = (self.cosign, "verify-blob-attestation", *self._by(folder), f"--bundle={path}", *about)
            result = process.run(argv, timeout_s=_TIMEOUT_S)
        if not result.code:
            return ""
        said = [line for line in result.stderr.splitlines() if line.startswith("Error: ")] or ["no reason given"]
        return said[-1].removeprefix("Error: ")

    def _by(self, folder: Path) -> tuple[str, ...]:
        if not self.key:
            return (f"--certificate-identity={self.identity}", f"--certificate-oidc-issuer={self.issuer}")
        # a key needs no roots of trust, and its signatures are in no public log
        root = folder / "trusted-root.json"
        _ask((self.cosign, "trusted-root", "create", f"--out={root}"))
        return (f"--key={self.key}", f"--trusted-root={root}", "--insecure-ignore-tlog=true")


def signer(*, key: str, keyless: bool, scratch: Path | None = None) -> Signer | None:
    """Return who signs, None when nobody was asked to; raises Missing where that cannot be."""
    if key and keyless:
        raise errors.BadInput("--key and --keyless: one of them")
    if not (key or keyless):
        return None
    found = require_cosign()
    if key and "://" not in key:
        if not Path(key).is_file():
            hint = "make one: cosign generate-key-pair, then --key cosign.key"
            raise errors.BadInput(f"{key}: no such key file", hint=hint)
        if PASSWORD not in os.environ:
            hint = f"read -rs {PASSWORD}; export {PASSWORD}"
            raise errors.BadInput(f"{key}: its password is read from {PASSWORD}, which is not set", hint=hint)
    return Signer(cosign=found, key=key, scratch=scratch)


def verifier(*, key: str, identity: str, issuer: str) -> Verifier | None:
    """Return who checks signatures, None when no key and no identity is given."""
    if key and (identity or issuer):
        raise errors.BadInput("--key, or --identity with --issuer: not both")
    if bool(identity) != bool(issuer):
        raise errors.BadInput("--identity and --issuer belong together: who signed, and who vouches for that")
    if not (key or identity):
        return None
    if key and "://" not in key and not Path(key).is_file():
        raise errors.BadInput(f"{key}: no such file; it is the publisher's public key, cosign.pub")
    return Verifier(cosign=require_cosign(), key=key, identity=identity, issuer=issuer)


def require_cosign() -> str:
    """Return cosign's path; raises Missing where there is none."""
    if found := shutil.which("cosign"):
        return found
    raise errors.Missing("cosign: no such program on this machine, and signatures are its work", hint=_INSTALL)


def payload(bundle: bytes) -> bytes:
    """Return the statement that a bundle holds, whoever signed it; raises BadInput or Damaged for what is none."""
    whole = registry.read_json(bundle, "bundle")
    try:
        return base64.b64decode(whole["dsseEnvelope"]["payload"], validate=True)
    except (ValueError, TypeError, KeyError) as error:
        raise errors.BadInput(f"no Sigstore bundle with a statement: {type(error).__name__}: {error}") from error


def _with_key(cosign: str, key: str, folder: Path) -> tuple[str, ...]:
    """Return the flags of a signature that is made with a key alone: no log, no time stamp, no certificate."""
    config, root = folder / "signing-config.json", folder / "trusted-root.json"
    try:
        _ask((cosign, "signing-config", "create", f"--out={config}"))
    except errors.CommandFailed as error:
        raise errors.Missing(f"{cosign} is too old to sign without a public log", hint=_INSTALL) from error
    _ask((cosign, "trusted-root", "create", f"--out={root}"))
    return (f"--key={key}", f"--signing-config={config}", f"--trusted-root={root}")


def _ask(argv: tuple[str, ...]) -> str:
    return process.ask(argv, timeout_s=_TIMEOUT_S)
