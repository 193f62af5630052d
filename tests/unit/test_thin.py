"""What a thin build refuses before it begins, and what it does not accept after it: each gate with one broken input."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kiln import catalog, errors, plan
from kiln.catalog import Catalog, lock_records
from kiln.image.thin import accept as thin_accept
from kiln.image.thin import base as thin_base
from kiln.image.thin import engine as thin_engine
from kiln.image.thin import run as thin
from kiln.image.thin.accept import Expected
from kiln.image.thin.layer import Member
from kiln.lock import base as locking
from kiln.registry import layers
from kiln.registry.layers import Found
from kiln.report import Reporter

if TYPE_CHECKING:
    from kiln.plan import Plan

ROOT = "usr/lib/python3/dist-packages"
INFO = "vllm-0.31.0.dist-info"
LEDGER = b"{}\n"
DIGEST = f"sha256:{'0' * 64}"
QUIET = Reporter(quiet=True)
VERSIONS = {
    "vllm": "0.31.0",
    "torch": "2.13.0+cu130",
    "torchvision": "0.28.0+cu130",
    "torchaudio": "2.11.0+cu130",
    "triton": "3.7.1",
    "flashinfer-python": "0.7.0.post1",
    "nvidia-cutlass-dsl": "4.7.1",
    "nvidia-nccl-cu13": "2.30.7",
}


@pytest.fixture(scope="module")
def real() -> Catalog:
    return catalog.load(catalog.find_root(Path(__file__).parent))


@pytest.fixture(scope="module")
def target(real: Catalog) -> Plan:
    return plan.make(real, variant="mxfp8", arch="sm100", release="0.31.0")


def base_of(target: Plan, files: dict[str, str | None] | None = None) -> lock_records.Base:
    return lock_records.Base(
        root=ROOT,
        dist_info=INFO,
        record_sha256="0" * 64,
        record_layer=0,
        layers=(DIGEST,),
        diff_ids=(DIGEST,),
        files=locking.pristine(target.series) if files is None else files,
        modes={},
        versions=VERSIONS,
    )


def with_base(real: Catalog, target: Plan, base: lock_records.Base | None) -> Catalog:
    name = f"{target.image.repository}:{target.image.tag}"
    entry = real.lock.images[name].model_copy(update={"base": base})
    lock = real.lock.model_copy(update={"images": real.lock.images | {name: entry}})
    return replace(real, lock=lock)


def test_a_base_that_holds_the_wheels_files_is_taken(real: Catalog, target: Plan) -> None:
    base = base_of(target)
    assert thin_base.required(with_base(real, target, base), target) == base


def test_a_base_that_was_not_read_is_refused(real: Catalog, target: Plan) -> None:
    with pytest.raises(errors.BadInput, match="never read") as caught:
        thin_base.required(with_base(real, target, None), target)
    assert caught.value.hint == "./inv lock --bases --release 0.31.0"


def test_a_file_that_the_base_was_not_asked_for_is_named(real: Catalog, target: Plan) -> None:
    (path, *_) = files = locking.pristine(target.series)
    known = {each: sha256 for each, sha256 in files.items() if each != path}
    with pytest.raises(errors.BadInput) as caught:
        thin_base.required(with_base(real, target, base_of(target, files=known)), target)
    assert path in caught.value.message


def test_a_base_with_other_versions_than_pinned_is_refused(real: Catalog, target: Plan) -> None:
    base = base_of(target).model_copy(update={"versions": VERSIONS | {"torch": "2.12.0"}})
    with pytest.raises(errors.Findings, match=r"torch: is 2\.12\.0, and the pin torch is 2\.13\.0"):
        thin_base.required(with_base(real, target, base), target)


def test_every_file_that_is_not_the_wheels_is_named(real: Catalog, target: Plan) -> None:
    files: dict[str, str | None] = dict.fromkeys(locking.pristine(target.series), "f" * 64)
    with pytest.raises(errors.NotApplied) as caught:
        thin_base.required(with_base(real, target, base_of(target, files=files)), target)
    for path, sha256 in locking.pristine(target.series).items():
        row = f"  /{ROOT}/{path}: the edition needs sha256 {sha256}, the base has sha256 {'f' * 64}"
        assert row in caught.value.message.splitlines()


def test_a_file_that_the_base_lacks_is_named(real: Catalog, target: Plan) -> None:
    (path, *_) = files = dict(locking.pristine(target.series))
    with pytest.raises(errors.NotApplied) as caught:
        thin_base.required(with_base(real, target, base_of(target, files=files | {path: None})), target)
    assert f"/{ROOT}/{path}: " in caught.value.message
    assert caught.value.message.endswith("the base has no such file")


def test_a_target_that_gets_packages_is_refused(real: Catalog) -> None:
    chosen = plan.make(real, variant="mxfp4", arch="gfx950", release="0.24.0")
    assert chosen.installs
    with pytest.raises(errors.BadInput) as caught:
        thin_base.required(real, chosen)
    assert f"gets {chosen.installs[0].package} besides its series" in caught.value.message
    assert caught.value.hint == "build it without --thin"


def test_a_repository_with_a_tag_is_refused(real: Catalog, target: Plan) -> None:
    with pytest.raises(errors.BadInput) as caught:
        thin.run(real, target, repository="registry.example.com/vllm:latest", reporter=QUIET)
    assert caught.value.hint == "--to registry.example.com/vllm"


@pytest.mark.parametrize(
    ("server", "buildx"),
    [
        ("28.5.2+dfsg4", "github.com/docker/buildx 0.29.1+ds1 0.29.1+ds1-4"),
        ("29.0.1", "github.com/docker/buildx v0.30.0 1234abcd"),
        ("100.0.0", "github.com/docker/buildx v1.0.0 1234abcd"),
    ],
)
def test_an_engine_of_this_age_is_taken(server: str, buildx: str) -> None:
    assert list(thin_engine.lacking(server, buildx, is_containerd=True)) == []


@pytest.mark.parametrize(
    ("server", "buildx", "is_containerd", "problem"),
    [
        ("26.1.5", "github.com/docker/buildx v0.29.1 1", True, "the engine is 26.1.5; install Docker 28.0 or newer"),
        ("28.5.2", "github.com/docker/buildx 0.13.1+ds1", True, "buildx is 0.13.1; install docker-buildx"),
        ("28.5.2", "github.com/docker/buildx", True, "buildx is 'github.com/docker/buildx'; install docker-buildx"),
        ("28.5.2", "github.com/docker/buildx v0.29.1 1", False, "containerd-snapshotter"),
    ],
)
def test_what_is_too_old_is_named_with_what_to_install(
    server: str, buildx: str, problem: str, *, is_containerd: bool
) -> None:
    (said,) = thin_engine.lacking(server, buildx, is_containerd=is_containerd)
    assert problem in said


# the pushed layer


def found(path: str, data: bytes | None, mode: int = 0o644, **changes: Any) -> Found:
    made = Found(
        path=path,
        layer=1,
        layer_digest=DIGEST,
        mode=mode,
        size=len(data or b""),
        sha256="" if data is None else hashlib.sha256(data).hexdigest(),
        data=None,
        kind="folder" if data is None else "file",
    )
    return replace(made, **changes)


MEMBERS = (
    Member(path="usr", mode=0o755, data=None),
    Member(path="usr/.wh.old", mode=0o644, data=b""),
    Member(path="usr/a", mode=0o640, data=b"a"),
)
AS_MADE = {"usr": found("usr", None, 0o755), "usr/a": found("usr/a", b"a", 0o640)}


def test_a_layer_as_it_was_made_is_accepted() -> None:
    assert list(thin_accept.of_layer(AS_MADE, MEMBERS)) == []


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (AS_MADE | {"usr/a": found("usr/a", b"b", 0o640)}, "not the bytes that the build put there"),
        (AS_MADE | {"usr/a": found("usr/a", b"a", 0o644)}, "mode 0644, and the build gave it 0640"),
        (AS_MADE | {"usr/a": found("usr/a", b"a", 0o640, kind="link", link="b")}, "not the bytes"),
        ({"usr": AS_MADE["usr"]}, "not in the layer"),
    ],
)
def test_a_file_that_is_not_as_it_was_made_is_named(broken: dict[str, Found], problem: str) -> None:
    (finding,) = thin_accept.of_layer(broken, MEMBERS)
    assert finding.where == "/usr/a"
    assert problem in finding.problem


def test_a_file_too_many_and_a_folder_of_another_mode_are_named() -> None:
    broken = AS_MADE | {"usr": found("usr", None, 0o700), "etc/passwd": found("etc/passwd", b"x")}
    assert [finding.where for finding in thin_accept.of_layer(broken, MEMBERS)] == ["/etc/passwd", "/usr"]


def series_files(target: Plan) -> dict[str, Found]:
    """Return what the layer of a target holds, by hashes alone."""
    posts = {f"{ROOT}/{path}": post for use in target.series for path, _, post in use.files}
    ledgers = dict.fromkeys((f"{ROOT}/{INFO}/kiln-ledger.json", "opt/kiln/ledger.json"), LEDGER)
    files = {path: found(path, b"", sha256=str(post)) for path, post in posts.items()}
    return files | {path: found(path, data) for path, data in ledgers.items()}


def test_every_file_of_the_series_and_both_ledgers_are_compared_with_the_rehearsal(target: Plan) -> None:
    expected = Expected(base=base_of(target), plan=target, ledger=LEDGER, members=(), labels={}, config={})
    held = series_files(target)
    assert list(thin_accept.of_series(held, expected)) == []
    for path in held:
        broken = held | {path: found(path, b"something else")}
        assert [finding.where for finding in thin_accept.of_series(broken, expected)] == [f"/{path}"]
        less = {each: there for each, there in held.items() if each != path}
        assert [finding.where for finding in thin_accept.of_series(less, expected)] == [f"/{path}"]


# the base as its registry hands it out


def remote(layers: tuple[str, ...] = (DIGEST,), config: dict[str, Any] | None = None) -> Any:
    """Return as much of an image in a registry as is looked at before its layers are read."""
    listed = tuple(SimpleNamespace(digest=digest) for digest in layers)
    return SimpleNamespace(
        repository="vllm",
        manifest=SimpleNamespace(layers=listed, digest=DIGEST),
        config={"config": config or {}},
    )


def recorded(target: Plan, record: bytes) -> lock_records.Base:
    return base_of(target).model_copy(update={"record_sha256": hashlib.sha256(record).hexdigest()})


def test_a_base_of_other_layers_than_locked_is_refused(target: Plan, tmp_path: Path) -> None:
    base = recorded(target, b"record")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / base.record_sha256).write_bytes(b"record")
    assert thin_base.site(remote(), base, tmp_path, QUIET).record == b"record"
    with pytest.raises(errors.BadInput, match="other layers than images/"):
        thin_base.site(remote((DIGEST, DIGEST)), base, tmp_path, QUIET)


def test_a_record_that_is_not_the_locked_one_is_not_taken(
    target: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = recorded(target, b"record")
    kept = tmp_path / "records" / base.record_sha256
    kept.parent.mkdir()
    path = f"{ROOT}/{INFO}/RECORD"
    for held in (b"damaged", b"record"):
        kept.write_bytes(b"damaged in the cache")
        in_layer = {path: replace(found(path, held), data=held)}
        monkeypatch.setattr(layers, "scan", lambda *_, in_layer=in_layer, **__: in_layer)
        if held == b"record":
            assert thin_base.site(remote(), base, tmp_path, QUIET).record == b"record"
        else:
            with pytest.raises(errors.BadInput, match="RECORD is not what images/"):
                thin_base.site(remote(), base, tmp_path, QUIET)
    assert kept.read_bytes() == b"record"


def test_an_image_of_other_layers_or_started_in_another_way_is_not_accepted(
    target: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Expected(base=base_of(target), plan=target, ledger=LEDGER, members=(), labels={}, config={"User": ""})
    for digests in ((), (DIGEST,), (f"sha256:{'1' * 64}", DIGEST), (DIGEST, DIGEST, DIGEST)):
        (finding,) = thin_accept.differences(remote(digests), wanted, QUIET.note)
        assert finding.where == "layers"
    monkeypatch.setattr(layers, "scan", lambda *_, **__: {})
    monkeypatch.setattr(layers, "find", lambda *_, **__: {})
    said = [each.problem for each in thin_accept.differences(remote((DIGEST, DIGEST), {"User": "x"}), wanted, print)]
    assert said[0] == "User: 'x', and its base has ''"
