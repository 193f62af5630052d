"""Tasks at the end of the way: publish an image, and verify one that somebody has published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command
from kiln.tasks.target import TARGET

if TYPE_CHECKING:
    from invoke.context import Context

_SIGNED = {
    "identity": "who signs without a key: the e-mail address or URI in the certificate",
    "issuer": "who vouches for that identity: the URL of the OIDC issuer",
}


@command(
    help=TARGET
    | _SIGNED
    | {
        "twin": "the CPU-only image of the target",
        "to": "HOST/REPOSITORY to publish to; default: `publish` of kiln.yaml",
        "alias": "tags that move to this image, comma-separated; default: the target's with and without its release",
        "key": "sign with cosign and this key: a file, its password in COSIGN_PASSWORD, or a KMS address",
        "keyless": "sign with cosign as who you are, in Sigstore's public log",
        "waiver": "a YAML file that stands for tiers that were not run",
        "dry_run": "show what would be published; push nothing",
    }
)
def publish(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    twin: bool = False,
    to: str = "",
    alias: str = "",
    key: str = "",
    keyless: bool = False,
    identity: str = "",
    issuer: str = "",
    waiver: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Push, attest, sign and tag what was built and smoked, all or nothing; then verify it from a clean client."""
    from pathlib import Path

    from kiln import catalog
    from kiln import plan as planning
    from kiln.publish import intent, run
    from kiln.report import Reporter
    from kiln.tasks.show_publish import show_published

    loaded = catalog.load(catalog.find_root())
    chosen = planning.make(loaded, variant=variant, arch=arch, release=release, model=model)
    request = intent.Request(
        to=to,
        aliases=tuple(name.strip() for name in alias.split(",") if name.strip()),
        key=key,
        keyless=keyless,
        identity=identity,
        issuer=issuer,
        waiver=Path(waiver) if waiver else None,
        dry_run=dry_run,
    )
    made = run.run(loaded, chosen, request, twin=twin, reporter=Reporter())
    show_published(made, json=json)


@command(
    help=_SIGNED
    | {
        "image": "the image: HOST/REPOSITORY:TAG, @DIGEST, or both",
        "key": "the publisher's public key: a file, or a KMS address",
        "full": "read every layer, not only those with patched files",
        "ca": "a PEM bundle that the registry's certificate is checked with",
        "json": TARGET["json"],
    },
    words=("image",),
)
def verify(
    _: Context,
    *,
    image: str = "",
    key: str = "",
    identity: str = "",
    issuer: str = "",
    full: bool = False,
    ca: str = "",
    json: bool = False,
) -> None:
    """Check a published image against what is said about it: signature, patches, base, labels; needs no catalog."""
    from pathlib import Path

    from kiln import errors
    from kiln.publish import sign
    from kiln.publish import verify as verifying
    from kiln.report import Reporter
    from kiln.tasks.show_publish import show_verified

    if not image:
        raise errors.BadInput("verify: no image is named", hint="kiln verify HOST/REPOSITORY:TAG --key cosign.pub")
    verifier = sign.verifier(key=key, identity=identity, issuer=issuer)
    found = verifying.run(image, verifier=verifier, reporter=Reporter(), full=full, ca=Path(ca) if ca else None)
    show_verified(found, json=json)
