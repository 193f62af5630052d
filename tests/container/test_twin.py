"""The twin image: what it holds, that it is reproducible, and that a bad series never becomes an image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml

from kiln import errors, plan, process
from kiln.catalog import edition_path, lock_records, locked, records
from kiln.engine import short_lived
from kiln.image import accept, bake, base, build, inspect, prepare
from kiln.image.rehearsal import DISTRIBUTION, rehearse
from kiln.patching import authoring
from kiln.patching.tree import Memory
from kiln.report import Reporter
from kiln.upstream import pip_config, wheel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import docker

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

QUIET = Reporter(quiet=True)
PATCH = "m3-stream-first-delta"
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"
SITE = "/usr/local/lib/python3.11/dist-packages"


LEFTOVERS = """
import fnmatch, os
names = ("*.pyc", "uv.toml", "uv_cache.json", "direct_url.json", "*.orig", "*.rej", "sources.list*", "pip.conf")
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if not (folder == "/" and name in ("proc", "sys", "dev"))]
    for name in files:
        if folder.startswith("/run/secrets") or any(fnmatch.fnmatch(name, pattern) for pattern in names):
            print(folder, name)
"""


def read(client: docker.DockerClient, image: str, path: str) -> bytes:
    with short_lived.created(client, image) as container:
        return inspect.read_file(container, path)


def tagged(client: docker.DockerClient, name: str) -> dict[str, str]:
    """Return the images of a name by their tags: a person may have built the same target before."""
    return {tag: str(image.id) for image in client.images.list(name) for tag in image.tags}


def test_the_receipt_tells_what_was_built(twin: Receipt, twin_plan: Plan, real_catalog: Catalog) -> None:
    written = json.loads((real_catalog.output(twin_plan.target.slug) / "twin.json").read_text())
    assert written["digest"] == twin.digest
    assert written["series"] == [use.id for use in twin_plan.series]
    assert twin.series == tuple(written["series"])
    assert 0 < twin.compressed_bytes < 300_000_000


def test_the_ledger_in_the_image_is_the_rehearsals(
    client: docker.DockerClient, twin_image: str, twin_plan: Plan, real_catalog: Catalog
) -> None:
    rehearsal = rehearse(twin_plan, real_catalog, prepare.twin_of(twin_plan).wheel)
    assert read(client, twin_image, accept.LEDGER) == rehearsal.ledger


def test_the_patched_files_have_their_post_hashes(
    client: docker.DockerClient, twin_image: str, twin_plan: Plan
) -> None:
    # what the last patch of each file leaves
    expected = {path: post for use in twin_plan.series for path, _, post in use.files}
    assert PARSER in expected
    for path, post in expected.items():
        assert hashlib.sha256(read(client, twin_image, f"{SITE}/{path}")).hexdigest() == post


def test_labels_name_release_base_and_series(
    client: docker.DockerClient, twin_image: str, twin: Receipt, twin_plan: Plan
) -> None:
    labels = client.images.get(twin_image).labels
    assert labels["org.opencontainers.image.version"] == "0.31.0"
    assert labels["org.opencontainers.image.base.digest"] == twin.base
    assert labels["ai.kiln.series"] == ",".join(use.id for use in twin_plan.series)
    assert labels["ai.kiln.ledger.sha256"] == twin.ledger_sha256


def test_the_image_holds_no_index_address_no_secret_and_no_bytecode(
    client: docker.DockerClient, twin_image: str
) -> None:
    config = json.dumps([client.images.get(twin_image).attrs, client.images.get(twin_image).history()])
    assert pip_config.read().index_url not in config
    argv = ["-I", "-B", "-c", LEFTOVERS]
    found = client.containers.run(twin_image, argv, entrypoint="python3", remove=True, network_disabled=True).decode()
    assert found == ""


def test_two_builds_from_empty_caches_give_the_same_digest(
    twin: Receipt, twin_plan: Plan, real_catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second build uses no layer of the first."""
    with_cache = bake.command
    monkeypatch.setattr(bake, "command", lambda *args, **options: (*with_cache(*args, **options), "--no-cache"))
    again = build.run(real_catalog, twin_plan, twin=True, reporter=QUIET, how=build.How(rebuild=True))
    assert not again.unchanged
    assert again.digest == twin.digest


def test_one_changed_byte_of_an_edition_stops_before_any_build(
    edited: Callable[[Callable[[Path], None]], Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(root: Path) -> None:
        edition = root / "patches/m3-stream-first-delta/0.31.0.patch"
        edition.write_bytes(edition.read_bytes().replace(b"stray closer", b"stray closeR"))

    broken = edited(edit)
    monkeypatch.setattr(process, "show", lambda *_, **__: pytest.fail("BuildKit was started"))
    with pytest.raises(errors.NotApplied, match="m3-stream-first-delta: PATCH_CHANGED") as caught:
        build.run(broken, plan.make(broken, variant="mxfp8", arch="gfx942"), twin=True, reporter=QUIET)
    assert caught.value.exit_code == 5


def test_an_image_with_another_ledger_is_not_tagged(
    real_catalog: Catalog, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = plan.make(real_catalog, variant="mxfp8", arch="gfx950")
    real = inspect.read_file
    monkeypatch.setattr(inspect, "read_file", lambda *args: real(*args) + b" ")
    name = f"kiln/{other.target.slug}-twin"
    before = tagged(client, name)
    with pytest.raises(errors.NotApplied, match="ledger is not the rehearsal's"):
        build.run(real_catalog, other, twin=True, reporter=QUIET, how=build.How(rebuild=True))
    assert tagged(client, name) == before


def test_a_file_changed_after_the_patch_step_is_found_and_not_tagged(
    edited: Callable[[Callable[[Path], None]], Catalog], client: docker.DockerClient
) -> None:
    def meddle(root: Path) -> None:
        dockerfile = root / "images/twin/Dockerfile"
        change = f"RUN python3 -B -c \"open('{SITE}/{PARSER}', 'a').write('# later')\"\n"
        dockerfile.write_text(dockerfile.read_text().replace("# not linked:", f"{change}# not linked:"))

    meddled = edited(meddle)
    other = plan.make(meddled, variant="bf16", arch="gfx942")
    images = {image.id for image in client.images.list(all=True)}
    before = tagged(client, f"kiln/{other.target.slug}-twin")
    with pytest.raises(errors.NotApplied, match="TARGET_MODIFIED") as caught:
        build.run(meddled, other, twin=True, reporter=QUIET)
    assert PARSER in caught.value.message
    assert {image.id for image in client.images.list(all=True)} == images
    assert tagged(client, f"kiln/{other.target.slug}-twin") == before


def test_an_edit_of_the_same_size_reaches_the_image(
    edited: Callable[[Callable[[Path], None]], Catalog],
    real_catalog: Catalog,
    twin: Receipt,
    twin_plan: Plan,
    *,
    client: docker.DockerClient,
) -> None:
    """BuildKit takes a file of the same size and time for the one it has: what is staged must not look like that."""
    release = twin_plan.target.release
    chain = [use for use in twin_plan.series if any(path == PARSER for path, _, _ in use.files)]
    paths = sorted({path for use in chain for path, _, _ in use.files})
    pristine = wheel.read(prepare.twin_of(twin_plan).wheel, paths, cache=real_catalog.state / "wheels")

    def edit(root: Path) -> None:
        """One edition changes, and with it the hashes that the editions on top of it are recorded with."""
        held = {use.id: (root / edition_path(use.id, release)).read_bytes() for use in chain}
        held[PATCH] = held[PATCH].replace(b"stray closer", b"stray CLOSER")
        for patch in authoring.series(DISTRIBUTION, release, held.items(), Memory(pristine)).patches:
            (root / edition_path(patch.id, release)).write_bytes(patch.data)
            path = root / "patches" / patch.id / "patch.yaml"
            record = yaml.safe_load(path.read_text())
            files = {file.path: {"pre": file.pre, "post": file.post} for file in patch.files}
            record["editions"][release] = {"sha256": patch.sha256, "files": files}
            path.write_text(yaml.safe_dump(record, sort_keys=False))

    changed = edited(edit)
    receipt = build.run(changed, plan.make(changed, variant="mxfp8", arch="gfx942"), twin=True, reporter=QUIET)
    assert receipt.digest != twin.digest
    assert receipt.ledger_sha256 != twin.ledger_sha256
    # the image that it replaces is kept while it has another name, and else removed
    assert client.images.get(twin.digest)
    build.run(real_catalog, twin_plan, twin=True, reporter=QUIET)
    assert receipt.digest not in {image.id for image in client.images.list(all=True)}


def test_the_base_can_come_from_a_registry(
    edited: Callable[[Callable[[Path], None]], Catalog], real_engine: Engine, real_catalog: Catalog, tmp_path: Path
) -> None:
    """An explicit choice in releases.yaml: here the Debian root itself, pushed to the local registry."""
    root = base.ensure("base", real_catalog.state / "bases", QUIET)
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    pushed = f"{real_engine.registry}/kiln/debian"
    push = (
        *real_engine.buildx,
        "build",
        "--provenance=false",
        f"--build-context=base={root.context}",
        f"--output=type=image,name={pushed}:12,push=true",
        f"--metadata-file={tmp_path}/metadata.json",
        str(tmp_path),
    )
    process.ask(push, env=real_engine.environment())
    digest = json.loads((tmp_path / "metadata.json").read_text())["containerimage.digest"]

    def choose(folder: Path) -> None:
        path = folder / "images/releases.yaml"
        releases = yaml.safe_load(path.read_text())
        pin = {"digest": digest, "confidence": "A"}
        image = {"repository": pushed, "tag": "12", "manifest": pin}
        releases["releases"]["0.31.0"]["twin"]["base"] = image
        path.write_text(yaml.safe_dump(releases))
        lock = json.loads((folder / locked.LOCK).read_text())
        entry = {
            "repository": pushed,
            "tag": "12",
            "inputs_sha256": locked.inputs_sha256(records.ImagePin.model_validate(image)),
            "manifest": {"digest": digest, "confidence": "A"},
            "locked": "2026-11-20T00:00:00Z",
        }
        sealed = locked.sealed(lock_records.LockedImage.model_validate(entry))
        lock["images"][f"{pushed}:12"] = sealed.model_dump(mode="json", exclude_none=True)
        (folder / locked.LOCK).write_text(json.dumps(lock))

    chosen = edited(choose)
    receipt = build.run(chosen, plan.make(chosen, variant="mxfp8", arch="gfx942"), twin=True, reporter=QUIET)
    assert receipt.base == digest

    wrong = edited_lock(chosen, digest)
    with pytest.raises(errors.Missing, match="is gone: its registry answers") as caught:
        build.run(wrong, plan.make(wrong, variant="mxfp8", arch="gfx942"), twin=True, reporter=QUIET)
    assert "./inv lock" in caught.value.hint


def edited_lock(chosen: Catalog, digest: str) -> Catalog:
    """Return the catalog with a digest locked that the registry does not have."""
    images = {
        name: entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"digest": f"sha256:{'0' * 64}"})})
        if entry.manifest and entry.manifest.digest == digest
        else entry
        for name, entry in chosen.lock.images.items()
    }
    return replace(chosen, lock=chosen.lock.model_copy(update={"images": images}))
