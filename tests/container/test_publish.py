"""Images published to a real registry, signed by the real cosign, and every way to meddle with them afterwards."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import publish_support as support
import pytest

from kiln import catalog, errors, plan, process
from kiln.image import build
from kiln.image.thin import run as thin
from kiln.lock import run as locking
from kiln.publish import attached, evidence, intent, run, sbom, sign, statements, tags, verify
from kiln.registry import client as registries
from kiln.registry import image as images
from kiln.registry.artifact import fallback_tag
from kiln.report import Reporter
from kiln.smoke import checks
from kiln.smoke.records import CheckResult, SmokeResult
from kiln.upstream import debian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.container.conftest import Make

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan
    from kiln.publish.run import Published
    from kiln.publish.verify import Verified
    from kiln.registry.client import Registry

QUIET = Reporter(quiet=True)
IDENTITY = ("-c", "user.name=Kiln Test", "-c", "user.email=test@example.invalid")
REPOSITORY, SMALL = "kiln-test/publish", "kiln-test/published"
FAMILY = "minimax-m3-mxfp8-gfx942-twin"
ALIASES = (f"{FAMILY}-v0.31.0", FAMILY)


@pytest.fixture(scope="session")
def cosign(real_catalog: Catalog) -> Path:
    """The folder of the real cosign, out of Debian's package."""
    home = real_catalog.state / "cosign"
    debs = debian.fetch(("cosign",), suite="sid", dest=home / "debs")
    if not (home / "root/usr/bin/cosign").is_file():
        debian.unpack(debs, home / "root")
    return home / "root/usr/bin"


@dataclass(frozen=True, kw_only=True)
class Keys:
    mine: str
    public: str
    theirs: str
    their_public: str


@pytest.fixture(scope="session")
def keys(cosign: Path, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "theirs"):
        argv = (str(cosign / "cosign"), "generate-key-pair", f"--output-key-prefix={name}")
        process.ask(argv, env=os.environ | {sign.PASSWORD: "a word"}, cwd=folder)
    at = {name: str(folder / name) for name in ("mine.key", "mine.pub", "theirs.key", "theirs.pub")}
    return Keys(mine=at["mine.key"], public=at["mine.pub"], theirs=at["theirs.key"], their_public=at["theirs.pub"])


@pytest.fixture(autouse=True)
def settings(cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{cosign}:{os.environ['PATH']}")
    monkeypatch.setenv(sign.PASSWORD, "a word")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def registry(real_engine: Engine) -> Iterator[Registry]:
    assert real_engine.registry, "these tests need the embedded engine's registry"
    with registries.connect(real_engine.registry) as connected:
        yield connected


def word() -> bytes:
    """Return what makes an image one that no other test, and no other run, has."""
    return f"WORD = '{uuid.uuid4()}'\n".encode()


def forget(registry: Registry, repository: str) -> None:
    """Remove every manifest that a tag of a repository names, and so the tags."""
    for tag in registry.tags(repository):
        if head := registry.head(repository, tag):
            registry.delete(repository, head.digest)


# a small image, published by hand with the real key, and meddled with


def signer(key: str) -> sign.Signer:
    made = sign.signer(key=key, keyless=False)
    assert made
    return made


def checked(registry: Registry, ref: str, key: str, *, full: bool = False) -> Verified:
    verifier = sign.verifier(key=key, identity="", issuer="")
    return verify.run(f"{registry.host}/{SMALL}{ref}", verifier=verifier, reporter=QUIET, full=full)


def found(result: Verified) -> dict[str, str]:
    return {each.where: each.problem for each in result.findings}


@pytest.fixture
def small(registry: Registry, keys: Keys) -> Iterator[support.Small]:
    made = support.push(registry, SMALL, word=word())
    support.attach(registry, made, made.statements(), signer(keys.mine))
    support.tag(registry, made)
    yield made
    forget(registry, SMALL)


def test_a_signed_image_verifies_with_its_key_and_with_cosign_alone(
    registry: Registry, small: support.Small, keys: Keys, cosign: Path
) -> None:
    result = checked(registry, f":{small.patches.tags[0]}", keys.public, full=True)
    assert (result.findings, result.signature, result.layers) == ((), "verified", 2)
    assert checked(registry, f"@{small.digest}", "").signature == "not checked"
    image = f"{registry.host}/{SMALL}@{small.digest}"
    by = (f"--key={keys.public}", "--insecure-ignore-tlog=true", image)
    said = json.loads(process.ask((str(cosign / "cosign"), "verify", *by)))
    assert statements.SIGNATURE in {each["critical"]["type"] for each in said}
    process.ask((str(cosign / "cosign"), "verify-attestation", f"--type={statements.PATCHES}", *by))


def test_another_key_does_not_verify_it(registry: Registry, small: support.Small, keys: Keys) -> None:
    problems = found(checked(registry, f"@{small.digest}", keys.their_public))
    assert set(problems) == {"signature", *statements.ATTESTATIONS}
    assert all("there is one, but it does not count" in problem for problem in problems.values())


def test_a_signature_that_was_swapped_for_one_of_another_key_is_found(registry: Registry, keys: Keys) -> None:
    made = support.push(registry, SMALL, word=word())
    mine, theirs = signer(keys.mine), signer(keys.theirs)
    for statement in made.statements().values():
        attachment = attached.Attachment(statement=statement, bundle=mine.sign(statement))
        attached.attach(registry, SMALL, made.subject, attachment)
    swapped = statements.signature(name="x", digest=made.digest)
    attached.attach(registry, SMALL, made.subject, attached.Attachment(statement=swapped, bundle=theirs.sign(swapped)))
    assert set(found(checked(registry, f"@{made.digest}", keys.public))) == {"signature"}


def test_a_signature_of_another_image_is_none(registry: Registry, small: support.Small, keys: Keys) -> None:
    """All that is attached to one image, copied to another one as it is."""
    other = support.push(registry, SMALL, word=word())
    for listed in registry.referrers(SMALL, small.digest):
        bundle = registry.read_blob(SMALL, registry.manifest(SMALL, listed.digest).layers[0], limit=1 << 20)
        attachment = attached.Attachment(statement=statements.read(sign.payload(bundle)), bundle=bundle)
        attached.attach(registry, SMALL, other.subject, attachment)
    problems = found(checked(registry, f"@{other.digest}", keys.public))
    assert set(problems) == {"signature", *statements.ATTESTATIONS}
    assert all(f"is about {small.digest}" in problem for problem in problems.values())


def test_a_statement_that_was_changed_after_it_was_signed_is_found(registry: Registry, keys: Keys) -> None:
    made = support.push(registry, SMALL, word=word())
    mine, said = signer(keys.mine), made.statements()
    bundle = json.loads(mine.sign(said["smoke"]))
    other = made.statements(smoke={"evidence": {"passed": True}})["smoke"]
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(other.data).decode()
    smoke = said.pop("smoke")
    support.attach(registry, made, said, mine)
    attachment = attached.Attachment(statement=smoke, bundle=json.dumps(bundle).encode())
    attached.attach(registry, SMALL, made.subject, attachment)
    assert set(found(checked(registry, f"@{made.digest}", keys.public))) == {"smoke evidence"}


def test_an_unsigned_image_is_not_what_a_key_was_given_for(registry: Registry, keys: Keys) -> None:
    made = support.push(registry, SMALL, word=word())
    support.attach(registry, made, made.statements())
    assert checked(registry, f"@{made.digest}", "").findings == ()
    problems = found(checked(registry, f"@{made.digest}", keys.public))
    assert problems["signature"] == "missing"
    assert problems["patches"] == "there is one, but it does not count: is not signed"


def test_what_a_stranger_attaches_changes_nothing(registry: Registry, small: support.Small, keys: Keys) -> None:
    lies = small.statements(patches={}, smoke={"evidence": "all passed"})
    support.attach(registry, small, lies, signer(keys.theirs))
    support.attach(registry, small, lies)
    assert checked(registry, f"@{small.digest}", keys.public).findings == ()


def test_a_missing_attestation_is_found(registry: Registry, small: support.Small, keys: Keys) -> None:
    tag = fallback_tag(small.digest)
    index = json.loads(registry.manifest(SMALL, tag).data)
    kept = [
        each
        for each in index["manifests"]
        if each["annotations"]["dev.sigstore.bundle.predicateType"] != statements.SBOM
    ]
    assert len(kept) == len(index["manifests"]) - 1
    data = json.dumps(index | {"manifests": kept}).encode()
    registry.put_manifest(SMALL, tag, data, index["mediaType"])
    assert found(checked(registry, f"@{small.digest}", keys.public)) == {"SBOM": "missing"}


def test_a_moved_tag_is_found(registry: Registry, small: support.Small, keys: Keys) -> None:
    other = support.push(registry, SMALL, word=word())
    support.attach(registry, other, other.statements(), signer(keys.mine))
    immutable = small.patches.tags[0]
    support.tag(registry, other, immutable)
    for ref in (f":{immutable}", f":{immutable}@{small.digest}"):
        assert set(found(checked(registry, ref, keys.public))) == {f"tag {immutable}"}


@contextlib.contextmanager
def one_byte_changed(real_catalog: Catalog, digest: str) -> Iterator[None]:
    """Change one byte of a blob where the registry keeps it, and put it back."""
    name = digest.removeprefix("sha256:")
    path = real_catalog.state / "engine/registry/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
    whole = path.read_bytes()
    place = len(whole) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    try:
        yield
    finally:
        path.write_bytes(whole)


def test_one_byte_in_a_stored_layer_is_found(
    registry: Registry, small: support.Small, keys: Keys, real_catalog: Catalog
) -> None:
    top = registry.manifest(SMALL, small.digest).layers[1].digest
    with one_byte_changed(real_catalog, top):
        for full in (False, True):
            problems = found(checked(registry, f"@{small.digest}", keys.public, full=full))
            assert set(problems) == {"layers"}
            assert top in problems["layers"]
    assert checked(registry, f"@{small.digest}", keys.public).findings == ()


# the twin, published by the tasks' own way


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A catalog with a commit, its twin built, and evidence for it."""

    catalog: Catalog
    plan: Plan
    receipt: Receipt

    kind: str = "twin"

    def evidence(self, *statuses: str, digest: str = "") -> None:
        names = {
            "structural": ("verify", *(f"probe {use.id}" for use in self.plan.series)),
            "serve": ("start", *(check.name for check in checks.SERVE), "shutdown"),
        }
        told = tuple(
            CheckResult(tier=tier, name=name, status=status)  # type: ignore[arg-type]  # as the literals are
            for (tier, every), status in zip(names.items(), statuses, strict=True)
            for name in every
        )
        made = SmokeResult(
            image=digest or self.receipt.digest, puppet="", started="2026-01-01T00:00:00Z", seconds=1.0, checks=told
        )
        evidence.write(self.catalog.output(self.plan.target.slug), self.plan, made, kind=self.kind)

    def publish(self, **asked: Any) -> Published:
        return run.run(self.catalog, self.plan, intent.Request(**asked), twin=self.kind == "twin", reporter=QUIET)


def commit(root: Path) -> None:
    (root / ".gitignore").write_text("build/\n")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=all")):
        process.ask(("git", "-C", str(root), *IDENTITY, *words))


@pytest.fixture
def shop(edited: Callable[[Callable[[Path], None]], Catalog]) -> Shop:
    loaded = edited(commit)
    chosen = plan.make(loaded, variant="mxfp8", arch="gfx942")
    made = build.run(loaded, chosen, twin=True, reporter=QUIET)
    shop = Shop(catalog=loaded, plan=chosen, receipt=made)
    shop.evidence("passed", "passed")
    return shop


@pytest.fixture
def to(registry: Registry) -> Iterator[str]:
    """A repository that no other test, and no other run, has."""
    name = f"{REPOSITORY}/{uuid.uuid4().hex}"
    yield f"{registry.host}/{name}"
    forget(registry, name)


def pointing(registry: Registry, to: str) -> set[str]:
    """Return the tags that people use; those of pushes by digest and of attachments are none."""
    names = registry.tags(to.partition("/")[2])
    return {name for name in names if not name.startswith(("digest-", "sha256-"))}


def test_publish_and_verify(shop: Shop, to: str, keys: Keys, registry: Registry) -> None:
    dry = shop.publish(to=to, key=keys.mine, dry_run=True)
    assert pointing(registry, to) == set()
    made = shop.publish(to=to, key=keys.mine)
    assert made == replace(dry, dry_run=False)
    assert pointing(registry, to) == {made.tag, *ALIASES}
    assert made.tag.startswith(f"{FAMILY}-v0.31.0-k")
    assert made.image == f"{to}@{shop.receipt.digest}"
    assert (made.slsa_level, made.waived) == (1, ())
    assert set(made.before.values()) == {""}
    public = shop.catalog.output(shop.plan.target.slug) / "twin-cosign.pub"
    assert made.verify == f"kiln verify {to}:{made.tag}@{shop.receipt.digest} --key {os.path.relpath(public)}"
    assert made.public_key == os.path.relpath(public)
    verifier = sign.verifier(key=str(public), identity="", issuer="")
    result = verify.run(f"{to}:{FAMILY}", verifier=verifier, reporter=QUIET, full=True)
    assert (result.findings, result.signature, result.target) == ((), "verified", shop.plan.target.slug)
    assert result.files == len({path for use in shop.plan.series for path, _, _ in use.files})
    components = listed(registry, to, shop.receipt.digest)
    assert {"vllm", "torch", "libc6"} <= components
    again = shop.publish(to=to, key=keys.mine, aliases=("stable",))
    assert set(again.before.values()) == {"", shop.receipt.digest}
    assert pointing(registry, to) == {made.tag, *ALIASES, "stable"}
    repository = to.partition("/")[2]
    known = registry.referrers(repository, shop.receipt.digest)
    shop.publish(to=to, key=keys.mine, aliases=("stable",))
    assert registry.referrers(repository, shop.receipt.digest) == known, "all of it was there already"
    for tag in ("stable", FAMILY):
        assert verify.run(f"{to}:{tag}", verifier=verifier, reporter=QUIET).findings == ()


def listed(registry: Registry, to: str, digest: str) -> set[str]:
    """Return the names of what the SBOM attached to an image lists."""
    repository = to.partition("/")[2]
    image = images.open_image(registry, repository, digest)
    (document,) = attached.read(image, None, say=QUIET.note).of(statements.SBOM)
    return {each["name"].replace("-cpu", "") for each in document.predicate["components"]}


def test_without_cosign_all_is_attached_and_said_to_be_unsigned(
    shop: Shop, to: str, monkeypatch: pytest.MonkeyPatch, keys: Keys
) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name == "cosign" else real(name, **more))
    with pytest.raises(errors.Missing, match="cosign: no such program"):
        shop.publish(to=to, key=keys.mine)
    assert shop.publish(to=to).signed == "UNSIGNED"
    result = verify.run(f"{to}:{FAMILY}", verifier=None, reporter=QUIET)
    assert (result.findings, result.signature) == ((), "unsigned")


def refused(shop: Shop, to: str, **asked: Any) -> str:
    with pytest.raises(errors.PublishRefused) as caught:
        shop.publish(to=to, **asked)
    return caught.value.message


def waiving(shop: Shop, folder: Path, *tiers: str) -> Path:
    lines = {"target": shop.plan.target.slug, "digest": shop.receipt.digest, "tiers": tiers}
    path = folder / "waiver.yaml"
    path.write_text(json.dumps(lines | {"reason": "why", "by": "Ada", "until": "2999-01-01"}))
    return path


def test_the_gate_lets_nothing_through(
    shop: Shop, to: str, registry: Registry, *, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "_publish", lambda *_: pytest.fail("something was pushed"))
    shop.evidence("passed", "failed")
    (shop.catalog.root / "recipes/more.txt").write_text("")
    told = refused(shop, to)
    assert "catalog: changed since commit" in told
    assert "serve/start: failed" in told
    (shop.catalog.root / "recipes/more.txt").unlink()
    shop.evidence("passed", "passed", digest=f"sha256:{'0' * 64}")
    assert "not about" in refused(shop, to)
    shop.evidence("passed", "not_run")
    assert "tier serve: NOT_RUN" in refused(shop, to)
    waiver = waiving(shop, tmp_path, "serve")
    assert shop.publish(to=to, waiver=waiver, dry_run=True).waived == ("serve",)
    assert pointing(registry, to) == set()


def test_an_immutable_tag_that_names_something_else_is_not_moved(shop: Shop, to: str, registry: Registry) -> None:
    repository = to.partition("/")[2]
    tag = shop.publish(to=to, dry_run=True).tag
    other = support.push(registry, repository)
    support.tag(registry, other, tag)
    assert f"tag {tag}: names {other.digest} already, and never names anything else" in refused(shop, to)
    head = registry.head(repository, tag)
    assert head
    assert head.digest == other.digest


@pytest.mark.parametrize("failing", [2, "verify"])
def test_a_publication_that_fails_half_way_leaves_every_tag_as_it_was(
    shop: Shop, to: str, registry: Registry, *, monkeypatch: pytest.MonkeyPatch, failing: int | str
) -> None:
    repository = to.partition("/")[2]
    before = support.push(registry, repository)
    support.tag(registry, before, FAMILY)
    real_put, moves = tags._put, []

    def put(registry: Registry, repository: str, tag: str, at: Any) -> None:
        moves.append(tag)
        if len(moves) == failing:
            raise errors.CommandFailed(f"{tag}: the registry has had enough")
        real_put(registry, repository, tag, at)

    monkeypatch.setattr(tags, "_put", put)
    monkeypatch.setattr(sbom, "make", lambda *_, **__: support.SBOM)
    expected: type[errors.KilnError] = errors.CommandFailed
    if failing == "verify":
        expected = errors.PublishRefused
        monkeypatch.setattr(run, "_verify", lambda *_: ("verify", f"{to}:no-such-tag"))
    with pytest.raises(expected, match="every tag is again as it was") as caught:
        shop.publish(to=to)
    assert caught.value.exit_code == (8 if failing == "verify" else 4)
    assert pointing(registry, to) == {FAMILY}
    head = registry.head(repository, FAMILY)
    assert head
    assert head.digest == before.digest
    assert not (shop.catalog.output(shop.plan.target.slug) / "twin-published.json").exists()


# a real image, over a base that looks like the official one


def test_a_thin_image_is_published_where_its_build_has_pushed_it(
    edited: Callable[[Callable[[Path], None]], Catalog], lookalike: Make, to: str, *, keys: Keys, tmp_path: Path
) -> None:
    base = lookalike(kind="rocm")
    loaded = edited(base.adopt)
    locking.run(loaded, locking.Wish(release=base.release, bases=True), QUIET)
    commit(loaded.root)
    loaded = replace(catalog.load(loaded.root), state=loaded.state)
    chosen = plan.make(loaded, variant="mxfp8", arch="gfx942")
    made = thin.run(loaded, chosen, repository=to, reporter=QUIET)
    shop = Shop(catalog=loaded, plan=chosen, receipt=made, kind="rocm")
    shop.evidence("passed", "passed")
    assert "tier device: NOT_RUN, and it is required of a rocm image" in refused(shop, to)
    waiver = waiving(shop, tmp_path, "device")
    assert f"the thin build was pushed to {to}" in refused(shop, f"{to}/elsewhere", waiver=waiver)
    published = shop.publish(to=to, key=keys.mine, waiver=waiver)
    assert published.waived == ("device",)
    verifier = sign.verifier(key=keys.public, identity="", issuer="")
    result = verify.run(f"{to}:minimax-m3-mxfp8-gfx942", verifier=verifier, reporter=QUIET, full=True)
    assert (result.findings, result.signature) == ((), "verified")
