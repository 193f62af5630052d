"""Prints what was published or verified; what is unsigned is said loudly."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from kiln import errors, report

if TYPE_CHECKING:
    from kiln.publish.run import Published
    from kiln.publish.verify import Verified

_UNSIGNED = "! UNSIGNED: anybody who can write to the repository could have made this image and all that is said of it"
_UNCHECKED = "! signed, but NOT CHECKED: name the publisher's key, --key cosign.pub, or --identity with --issuer"
_NOT_ASKED = "! UNSIGNED: nothing proves who published this; sign with --key cosign.key, or --keyless"


def show_published(made: Published, *, json: bool) -> None:
    """Print what was published and the one command that verifies it."""
    if made.signed == "UNSIGNED":
        print(_NOT_ASKED, file=sys.stderr)
    if json:
        print(report.as_json(asdict(made)))
        return
    rows = [
        ("image", made.image),
        *((f"tag {tag}", _moved(made, before)) for tag, before in made.before.items()),
        ("attested", ", ".join(made.attestations)),
        ("signed", made.signed),
        ("SLSA", f"build level {made.slsa_level}: {made.slsa_because}"),
        *((("waived", ", ".join(made.waived)),) if made.waived else ()),
    ]
    print(report.table(("would publish" if made.dry_run else "published", made.target), rows))
    print(f"{'would be verified' if made.dry_run else 'verified'} from a clean client:\n  {made.verify}")
    if made.public_key:
        print(f"hand on {made.public_key}: whoever checks the signature needs it, and needs it from you")


def show_verified(found: Verified, *, json: bool) -> None:
    """Print what was checked; raises PublishRefused when something is wrong."""
    if found.signature != "verified":
        print(_UNSIGNED if found.signature == "unsigned" else _UNCHECKED, file=sys.stderr)
    if json:
        print(report.as_json(asdict(found)))
    if found.findings:
        lines = [f"  {each.where}: {each.problem}" for each in found.findings]
        raise errors.PublishRefused("\n".join([f"{found.image} does not verify:", *lines]))
    if json:
        return
    rows = [
        ("digest", found.digest),
        ("signature", f"verified, {found.signed_by}" if found.signed_by else found.signature.upper()),
        ("attested", ", ".join(found.attestations)),
        *((("waived", f"{', '.join(found.waived)}: not run on this image"),) if found.waived else ()),
        ("target", found.target),
        ("patched files", f"{found.files} read in the image, as the ledger and the patch predicate say"),
        ("layers", f"all {found.layers} read" if found.layers else "those of patched files read; every one: --full"),
        ("SLSA", f"build level {found.slsa_level}, as the publisher says"),
    ]
    print(report.table(("verified", found.image), rows))


def _moved(made: Published, before: str) -> str:
    digest = made.image.rpartition("@")[2]
    if before == digest:
        return "as it was"
    return f"was {before}" if before else "new"
