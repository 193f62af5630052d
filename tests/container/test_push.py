"""Images pushed by digest to a real registry: with the person's own credentials, and only as they were accepted."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from kiln import errors, process
from kiln.image import accept_remote, bake, base_image, build, buildkit, orders, receipt
from kiln.image.many import Chosen
from kiln.registry import client as registries
from kiln.registry import image as images
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import docker

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

QUIET = Reporter(quiet=True)
REPOSITORY = "kiln-test/push"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """The twin, and where it is pushed to."""

    catalog: Catalog
    plan: Plan
    repository: str

    def push(self, *, catalog: Catalog | None = None, repository: str = "") -> build.Pushed:
        to = repository or self.repository
        return build.push(catalog or self.catalog, self.plan, twin=True, repository=to, reporter=QUIET)

    def run(self, *, catalog: Catalog | None = None, rebuild: bool = False) -> Receipt:
        how = build.How(repository=self.repository, rebuild=rebuild)
        return build.run(catalog or self.catalog, self.plan, twin=True, reporter=QUIET, how=how)

    def held(self, ref: str) -> str | None:
        """Return the digest that the registry has for a tag or digest."""
        host, _, name = self.repository.partition("/")
        with registries.connect(host) as registry:
            found = registry.head(name, ref)
        return found.digest if found else None


@pytest.fixture
def ask(real_catalog: Catalog, real_engine: Engine, twin: Receipt, twin_plan: Plan) -> Iterator[Ask]:
    """What is pushed is in the engine; the receipt is afterwards what it was."""
    yield Ask(catalog=real_catalog, plan=twin_plan, repository=f"{real_engine.registry}/{REPOSITORY}")
    receipt.write(real_catalog.output(twin_plan.target.slug), twin)


def test_a_push_has_the_accepted_digest_and_provenance_without_proxies(
    twin: Receipt, ask: Ask, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://user:pass-word@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pushed = ask.push()
    assert (pushed.digest, pushed.base) == (twin.digest, twin.base)
    assert pushed.provenance
    assert pushed.provenance["buildType"] == "https://mobyproject.org/buildkit@v1"
    assert pushed.provenance["metadata"]["buildStartedOn"]
    assert "pass-word" not in json.dumps(pushed.provenance)
    assert ask.held(f"digest-{twin.digest.removeprefix('sha256:')}") == twin.digest
    assert not client.images.list(ask.repository)


def test_other_inputs_than_the_receipts_are_not_pushed(
    twin: Receipt, ask: Ask, edited: Callable[[Callable[[Path], None]], Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = edited(lambda _: None)
    monkeypatch.setattr(process, "show", lambda *_, **__: pytest.fail("BuildKit was started"))
    with pytest.raises(errors.BadInput, match="nothing has been built"):
        ask.push(catalog=copy)
    receipt.write(copy.output(ask.plan.target.slug), replace(twin, inputs_sha256="0" * 64))
    with pytest.raises(errors.BadInput, match="was edited after it was built"):
        ask.push(catalog=copy)


def test_another_digest_from_the_same_inputs_is_not_pushed(twin: Receipt, ask: Ask) -> None:
    zeros = f"sha256:{'0' * 64}"
    receipt.write(ask.catalog.output(ask.plan.target.slug), replace(twin, digest=zeros))
    with pytest.raises(errors.PublishRefused, match=f"came {twin.digest}, and {zeros} was accepted"):
        ask.push()
    assert ask.held(f"digest-{'0' * 64}") is None


@pytest.mark.parametrize("tagged", ["host.example/repo:tag", "host:5000/repo@sha256:" + "0" * 64])
def test_a_repository_with_a_tag_or_digest_is_refused(tagged: str, ask: Ask) -> None:
    with pytest.raises(errors.BadInput, match="a repository, without a tag or digest"):
        ask.push(repository=tagged)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own builder in the place of one with a store of its own, but for the network and the tag it needs.

    A remote or Kubernetes builder cannot be had on every machine that runs these tests.
    """
    monkeypatch.setattr(buildkit, "is_own_driver", lambda *_: False)
    monkeypatch.setattr(bake, "OTHERS_NETWORK", "host")
    monkeypatch.setattr(bake, "pushed_by_digest", lambda name: bake.pushed(f"{name}:elsewhere") | {"store": "false"})


@pytest.mark.usefixtures("elsewhere")
def test_an_image_that_never_was_in_the_engine_is_read_out_of_the_registry(twin: Receipt, ask: Ask) -> None:
    made = ask.run(rebuild=True)
    again = ask.run()
    assert made.image == f"{ask.repository}@{twin.digest}"
    assert (made.digest, made.ledger_sha256, made.layers) == (twin.digest, twin.ledger_sha256, twin.layers)
    assert made.compressed_bytes
    assert again.unchanged


@pytest.mark.usefixtures("elsewhere")
def test_a_changed_file_in_the_registry_is_found(ask: Ask, edited: Callable[[Callable[[Path], None]], Catalog]) -> None:
    path = min({path for use in ask.plan.series for path, _, _ in use.files if path.endswith(".py")})

    def meddle(root: Path) -> None:
        dockerfile = root / "images/twin/Dockerfile"
        name = f"/usr/local/lib/python3.11/dist-packages/{path}"
        change = f"RUN python3 -B -c \"open('{name}', 'a').write('# later')\" && python3 -m py_compile {name}\n"
        dockerfile.write_text(dockerfile.read_text().replace("# not linked:", f"{change}# not linked:"))

    with pytest.raises(errors.NotApplied) as caught:
        ask.run(catalog=edited(meddle))
    assert f"{path}: sha256" in caught.value.message
    assert "bytecode of a changed module" in caught.value.message


def test_another_ledger_in_the_registry_is_found(twin: Receipt, ask: Ask) -> None:
    ask.push()
    host, _, name = ask.repository.partition("/")
    with (
        build.prepared(ask.catalog, ask.plan, twin=True, reporter=QUIET) as ready,
        registries.connect(host) as registry,
    ):
        other = replace(ready, job=replace(ready.job, rehearsal=replace(ready.job.rehearsal, ledger=b"{}")))
        image, base = images.open_image(registry, name, twin.digest), base_image.require(ready).layers
        with pytest.raises(errors.NotApplied, match="its ledger is not the rehearsal's"):
            accept_remote.ledger_of(other, image, base)
        with pytest.raises(errors.NotApplied, match="its lowest layers are not those of its base"):
            accept_remote.ledger_of(ready, image, (replace(base[0], digest=f"sha256:{'0' * 64}"),))


def test_buildx_reads_the_printed_document_as_it_was_meant(
    real_catalog: Catalog, real_engine: Engine, twin_plan: Plan, tmp_path: Path
) -> None:
    order = orders.Order(twin=True)
    text = orders.document(order, real_catalog, [Chosen(target="t", plan=twin_plan)], QUIET)
    file = tmp_path / "bake.json"
    file.write_text(text)
    written = json.loads(text)
    (name,) = written["target"]
    argv = (*real_engine.buildx, "bake", f"--file={file}", "--print", name)
    said = process.run(argv, env=real_engine.environment() | dict.fromkeys(bake.PROXIES, "") | {"no_proxy": "here"})
    read = json.loads(said.stdout)["target"][name]
    wanted = written["target"][name]
    for key in ("context", "dockerfile", "contexts", "labels", "platforms"):
        assert read[key] == wanted[key]
    assert read["args"]["no_proxy"] == "here"
    assert read["args"]["SOURCE_DATE_EPOCH"] == "1735689600"
    assert read["args"]["BASE"] == "base"
    assert read["secret"] == [{"id": each["id"], "src": each["src"]} for each in wanted["secret"]]


def test_a_builder_is_asked_for_its_driver(real_engine: Engine) -> None:
    assert buildkit.is_own_driver(real_engine, "")
    assert buildkit.is_own_driver(real_engine, "default")
    with pytest.raises(errors.BadInput, match='--builder nope: ERROR: no builder "nope" found'):
        buildkit.is_own_driver(real_engine, "nope")
