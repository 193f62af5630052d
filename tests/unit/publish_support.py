"""A small patched image in a registry, with everything that a publication says about it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from registry_support import CONFIG, LAYER, Entry, digest, tar

from kiln import __version__
from kiln.patching import ledger as ledgers
from kiln.patching.series import FileChange, Patch, Series
from kiln.publish import attached, statements, tags
from kiln.registry import records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiln.publish.sign import Signer
    from kiln.publish.statements import Patches, Statement
    from kiln.registry.client import Registry
    from kiln.registry.records import Descriptor

ROOT = "usr/lib/python3/dist-packages"
TARGET = "minimax-m3-mxfp8-gfx942-0.31.0"
FAMILY = "minimax-m3-mxfp8-gfx942-twin"
PROVENANCE = {"buildType": "https://mobyproject.org/buildkit@v1", "builder": {"id": ""}}
SBOM = {"bomFormat": "CycloneDX", "components": [{"name": "vllm"}]}
BEFORE, AFTER, GONE = b"WORD = 'before'\n", b"WORD = 'after'\n", b"# goes away\n"


@dataclass(frozen=True, kw_only=True)
class Small:
    """One image and what is true of it."""

    repository: str
    subject: Descriptor
    patches: Patches
    layers: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        return self.subject.digest

    def statements(self, **changed: Any) -> dict[str, Statement]:
        """Return what is said about it, by name; a predicate given by name takes another's place."""
        said = {
            "sbom": (statements.SBOM, SBOM),
            "provenance": (statements.PROVENANCE[1], PROVENANCE),
            "patches": (statements.PATCHES, self.patches.model_dump(mode="json")),
            "smoke": (statements.SMOKE, smoke(self.digest)),
        }
        return {
            name: statements.make(kind, changed.get(name, predicate), name="x", digest=self.digest)
            for name, (kind, predicate) in said.items()
        }


def evidence(digest: str, **checks: str) -> dict[str, Any]:
    """Return evidence as it is read: checks of tier serve by name, with their status."""
    listed = [
        {"tier": "serve", "name": name, "status": status, "findings": [], "seconds": 1.0, "reason": ""}
        for name, status in checks.items()
    ]
    run = {"image": digest, "puppet": "p", "started": "2026-01-01T00:00:00Z", "seconds": 1.0, "checks": listed}
    return {
        "schema": 1,
        "kiln": __version__,
        "target": TARGET,
        "kind": "twin",
        "image_digest": digest,
        "commit": "c" * 40,
        "dirty": False,
        "passed": True,
        "not_run": [],
        "recipe_sha256": "d" * 64,
        "series": [{"id": "toy", "edition_sha256": "e" * 64}],
        "smoke": run,
    }


def smoke(digest: str, *waived: str, **checks: str) -> dict[str, Any]:
    """Return a smoke predicate."""
    return {"evidence": evidence(digest, **(checks or {"start": "passed"})), "waiver": None, "waived": list(waived)}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ledger(word: bytes = AFTER) -> bytes:
    changed = FileChange("vllm/toy.py", sha256(BEFORE), sha256(word))
    removed = FileChange("vllm/old.py", sha256(GONE), None)
    patch = Patch("toy", sha256(b"edition"), (removed, changed), b"")
    return ledgers.render(ledgers.of(Series("vllm", "0.31.0", (patch,))))


def push(
    registry: Registry,
    repository: str,
    *,
    word: bytes = AFTER,
    held: bytes | None = None,
    labels: Mapping[str, str] | None = None,
) -> Small:
    """Push an image whose patch makes a file `word`; `held` is what the image has there instead."""
    base = tar(
        Entry("etc/os-release", b"ID=debian\n"),
        Entry(f"{ROOT}/vllm/toy.py", BEFORE),
        Entry(f"{ROOT}/vllm/old.py", GONE),
    )
    said = ledger(word)
    top = tar(
        Entry(f"{ROOT}/vllm/toy.py", word if held is None else held),
        Entry(f"{ROOT}/vllm/.wh.old.py"),
        Entry(f"{ROOT}/vllm-0.31.0.dist-info/{ledgers.NAME}", said),
        Entry("opt/kiln/ledger.json", said),
    )
    layers = [registry.push_blob(repository, layer, LAYER) for layer in (base, top)]
    patches = predicate(said, base)
    true = {
        "ai.kiln.target": TARGET,
        "ai.kiln.kind": "twin",
        "ai.kiln.series": "toy",
        "ai.kiln.ledger.sha256": sha256(said),
        "ai.kiln.catalog.commit": patches.catalog_commit,
        "ai.kiln.catalog.dirty": "false",
        "org.opencontainers.image.base.name": patches.base.name,
        "org.opencontainers.image.base.digest": patches.base.digest,
    }
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest(base), digest(top)]},
        "config": {"Labels": true | dict(labels or {})},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": records.OCI_MANIFEST,
        "config": records.as_json(registry.push_blob(repository, json.dumps(config).encode(), CONFIG)),
        "layers": [records.as_json(layer) for layer in layers],
    }
    data = json.dumps(manifest).encode()
    subject = records.describe(data, records.OCI_MANIFEST)
    registry.put_manifest(repository, subject.digest, data, records.OCI_MANIFEST)
    return Small(repository=repository, subject=subject, patches=patches, layers=(base, top))


def predicate(said: bytes, base: bytes) -> Patches:
    read = ledgers.parse(said, "ledger")
    immutable = tags.immutable_tag(f"{FAMILY}-v0.31.0", read.series)
    return statements.Patches(
        kiln=__version__,
        target=TARGET,
        kind="twin",
        tags=(immutable, f"{FAMILY}-v0.31.0", FAMILY),
        root=ROOT,
        patches=tuple(
            statements.Patch(
                id=entry.id,
                edition_sha256=entry.edition_sha256,
                files=tuple(statements.PatchFile(path=file.path, pre=file.pre, post=file.post) for file in entry.files),
            )
            for entry in read.patches
        ),
        ledger=statements.Ledger(path="opt/kiln/ledger.json", sha256=sha256(said), series=read.series),
        base=statements.Base(name="debian", digest=digest(b"base"), layers=(digest(base),), diff_ids=(digest(base),)),
        pins={"vllm_commit": "abc"},
        catalog_commit="c" * 40,
        inputs_sha256="d" * 64,
        slsa=statements.Slsa(level=1, because="a test"),
    )


def attach(registry: Registry, small: Small, said: dict[str, Statement], signer: Signer | None = None) -> None:
    """Attach these statements, and a signature where somebody signs."""
    signature = {"signature": statements.signature(name="x", digest=small.digest)} if signer else {}
    for statement in (said | signature).values():
        bundle = signer.sign(statement) if signer else b""
        attachment = attached.Attachment(statement=statement, bundle=bundle)
        attached.attach(registry, small.repository, small.subject, attachment)


def tag(registry: Registry, small: Small, *names: str) -> None:
    manifest = registry.manifest(small.repository, small.digest)
    for name in names or small.patches.tags:
        registry.put_manifest(small.repository, name, manifest.data, manifest.descriptor.media_type)
