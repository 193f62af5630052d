"""What a publication does between gate and result, with a small image in the place of a built one."""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import publish_support as support
import pytest
from registry_support import Fake, Reply, digest, serving

from kiln import catalog, errors, plan, process
from kiln.image import build, prepare, receipt
from kiln.publish import bases, client, evidence, intent, run, sbom, tags
from kiln.registry import client as registries
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.publish.intent import Intent
    from kiln.registry.client import Registry

REPO = "team/app"
GIT = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake()) as served:
        yield served


@pytest.fixture
def registry(fake: Fake) -> Iterator[Registry]:
    with registries.connect(fake.host) as connected:
        yield connected


@dataclass(kw_only=True)
class Shop:
    """A publication that has passed the gate, and what stands in the place of the programs it runs."""

    meant: Intent
    receipt: receipt.Receipt
    verified: list[tuple[str, ...]]
    runs: int = 0

    def publish(self, registry: Registry) -> None:
        run._publish(self.meant, registry, self.receipt, Reporter(quiet=True))


@pytest.fixture
def root(toy_catalog: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the toy's catalog with a commit; nothing is rehearsed or staged there."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    source = toy_catalog / "src/kiln/publish"
    source.mkdir(parents=True)
    (source / "gate.py").write_text("", encoding="utf-8")
    (toy_catalog / ".gitignore").write_text("build/\n.kiln/\n", encoding="utf-8")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=all")):
        process.ask(("git", "-C", str(toy_catalog), *GIT, *words))

    @contextlib.contextmanager
    def prepared(loaded: Any, chosen: Any, *, twin: bool, reporter: Any) -> Iterator[Any]:
        engine: Any = None
        rehearsal: Any = SimpleNamespace(ledger=support.ledger())
        job = prepare.Job(catalog=loaded, plan=chosen, twin=twin, rehearsal=rehearsal, engine=engine, reporter=reporter)
        base = prepare.Base(name="debian", digest=digest(b"base"))
        yield SimpleNamespace(job=job, base=base, inputs_sha256="d" * 64)

    monkeypatch.setattr(build, "prepared", prepared)
    return toy_catalog


def collected(root: Path, host: str) -> Intent:
    loaded = catalog.load(root)
    chosen = plan.make(loaded, variant="mxfp8", arch="gfx942")
    request = intent.Request(to=f"{host}/{REPO}")
    return intent.collect(loaded, chosen, request, twin=True, reporter=Reporter(quiet=True))


@pytest.fixture
def small(registry: Registry) -> support.Small:
    return support.push(registry, REPO)


@pytest.fixture
def shop(root: Path, registry: Registry, small: support.Small, monkeypatch: pytest.MonkeyPatch) -> Shop:
    meant = collected(root, registry.host)
    smoked = evidence.Evidence.model_validate(support.evidence(small.digest, start="passed"), strict=False)
    made = receipt.Receipt(
        target=support.TARGET,
        kind="twin",
        image="kiln/x:latest",
        digest=small.digest,
        base=small.patches.base.digest,
        series=("toy",),
        ledger_sha256=small.patches.ledger.sha256,
        inputs_sha256="d" * 64,
        compressed_bytes=1,
        layers=2,
        catalog_commit="c" * 40,
        catalog_dirty=False,
        seconds={},
    )
    shop = Shop(
        meant=replace(meant, case=replace(meant.case, evidence=smoked, receipt=made)), receipt=made, verified=[]
    )

    def pushed(*_: Any, **__: Any) -> Any:
        shop.runs += 1
        registry.put_manifest(REPO, f"digest-{small.digest[7:]}", *manifest(registry, small))
        return SimpleNamespace(provenance=support.PROVENANCE | {"metadata": {"at": shop.runs}})

    monkeypatch.setattr(build, "push", pushed)
    monkeypatch.setattr(bases, "layers", lambda *_: small.patches.base)
    monkeypatch.setattr(sbom, "make", lambda *_, **__: support.SBOM | {"serialNumber": str(shop.runs)})
    monkeypatch.setattr(client, "run", lambda arguments, **_: shop.verified.append(arguments))
    return shop


def manifest(registry: Registry, small: support.Small) -> tuple[bytes, str]:
    found = registry.manifest(REPO, small.digest)
    return found.data, found.descriptor.media_type


def named(registry: Registry) -> set[str]:
    return {tag for tag in registry.tags(REPO) if not tag.startswith("sha256-")}


def test_all_is_attached_tagged_and_verified(shop: Shop, registry: Registry, small: support.Small) -> None:
    shop.publish(registry)
    assert len(registry.referrers(REPO, small.digest)) == 4
    assert named(registry) - {f"digest-{small.digest[7:]}"} == set(small.patches.tags)
    assert [words[0] for words in shop.verified] == ["verify"]


def test_what_is_attached_already_is_not_attached_again(shop: Shop, registry: Registry, small: support.Small) -> None:
    for _ in range(3):
        shop.publish(registry)
    assert shop.runs == 3
    assert len(registry.referrers(REPO, small.digest)) == 4
    other = replace(shop.meant.names, aliases=("stable",))
    shop.meant = replace(shop.meant, names=other)
    shop.publish(registry)
    assert len(registry.referrers(REPO, small.digest)) == 5, "under which names is something new"


def test_the_name_of_the_push_goes_where_a_registry_deletes_tags(
    shop: Shop, registry: Registry, small: support.Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(registry, "delete", lambda _, tag: deleted.append(tag))
    shop.publish(registry)
    assert deleted == [f"digest-{small.digest[7:]}"]


def test_an_image_that_is_not_what_was_built_gets_no_tag(shop: Shop, registry: Registry, small: support.Small) -> None:
    shop.receipt = replace(shop.receipt, catalog_commit="0" * 40)
    with pytest.raises(errors.PublishRefused, match=r"is not what was built:\n  label ai\.kiln\.catalog\.commit"):
        shop.publish(registry)
    assert named(registry) == {f"digest-{small.digest[7:]}"}
    assert registry.referrers(REPO, small.digest) == ()


def test_a_publication_that_fails_says_what_it_leaves(
    shop: Shop, registry: Registry, small: support.Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise errors.PublishRefused("it does not verify")

    monkeypatch.setattr(client, "run", fails)
    with pytest.raises(errors.PublishRefused) as caught:
        shop.publish(registry)
    attached = registry.referrers(REPO, small.digest)
    assert caught.value.message.splitlines()[2:] == [
        f"it stays in {registry.host}/{REPO}: {small.digest}, perhaps under the tag digest-{small.digest[7:]}",
        *(f"attached: {each.digest}" for each in attached),
    ]
    assert len(attached) == 4


def test_an_interrupted_publication_says_it_too(
    shop: Shop,
    registry: Registry,
    small: support.Small,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tags, "look", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run._publish(shop.meant, registry, shop.receipt, Reporter())
    err = capsys.readouterr().err
    assert f"it stays in {registry.host}/{REPO}: {small.digest}" in err
    assert err.count("attached: ") == 4


def test_a_tag_that_cannot_be_set_is_not_the_end_of_the_others(fake: Fake, shop: Shop, registry: Registry) -> None:
    fake.script("PUT", f"/v2/{REPO}/manifests/{support.FAMILY}", *[Reply(status=403)] * 5)
    with pytest.raises(errors.KilnError, match="it stays in"):
        shop.publish(registry)
    assert support.FAMILY not in named(registry)


# what is known before


def test_the_day_of_a_publication_is_today(root: Path) -> None:
    before = dt.datetime.now(tz=dt.UTC).date()
    found = collected(root, "localhost:5000").case.today
    assert before <= found <= dt.datetime.now(tz=dt.UTC).date()


@pytest.mark.parametrize("edited", ["src/kiln/publish/gate.py", "src/kiln/new.py", "recipes/new.txt"])
def test_code_that_was_edited_is_a_catalog_that_was(root: Path, edited: str) -> None:
    """What is in no image decides what is published, too."""
    assert not collected(root, "localhost:5000").case.wanted.dirty
    (root / edited).write_text("# edited\n", encoding="utf-8")
    assert collected(root, "localhost:5000").case.wanted.dirty


def test_the_public_key_is_named_from_where_the_command_is_typed(
    root: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = replace(shop.meant, request=replace(shop.meant.request, key="awskms://key"))
    monkeypatch.chdir(root / "recipes")
    made = run._result(meant, shop.receipt, ())
    assert made.public_key == f"../build/{meant.plan.target.slug}/twin-cosign.pub"
    assert made.verify.endswith(f"--key {made.public_key}")
