"""Several targets at a time: rows for all, what fails hides nothing, and an interrupt leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kiln import errors, plan, process
from kiln.catalog import edition_path, records
from kiln.image import bake, build, many, orders, receipt
from kiln.report import Reporter
from kiln.tasks import choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker
    from tests.container.conftest import Make

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt

    Edited = Callable[[Callable[[Path], None]], Catalog]

QUIET = Reporter(quiet=True)
PATCH = "mxfp8-moe-gfx942"
SLOW = 'RUN python3 -c "import time; time.sleep(100)"\n'
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def as_it_was(client: docker.DockerClient) -> Iterator[None]:
    """Take away the tags that a test made: other tests look for what was not to be tagged."""

    def tags() -> set[str]:
        return {tag for image in client.images.list("kiln/*") for tag in image.tags}

    before = tags()
    yield
    for tag in tags() - before:
        client.images.remove(tag, noprune=True)


def test_one_that_does_not_apply_hides_no_other(twin: Receipt, edited: Edited) -> None:
    def edit(root: Path) -> None:
        edition = root / edition_path(PATCH, "0.31.0")
        edition.write_bytes(edition.read_bytes() + b"\n")

    made = edited(edit)
    asked = choice.Asked(arch="gfx942")
    rows = many.run(choice.matrix(made, asked), orders.worker(orders.Order(twin=True), made), jobs=2)
    found = {row.target: row for row in rows}
    assert {name: row.outcome for name, row in found.items()} == {
        "minimax-m3-bf16-gfx942-0.31.0": "built",
        "minimax-m3-mxfp8-gfx942-0.31.0": "failed",
    }
    failed = found[twin.target]
    assert failed.error
    assert PATCH in failed.error.message
    worst = many.worst(rows)
    assert isinstance(worst, errors.NotApplied)
    assert "1 of 2 targets were refused or failed: minimax-m3-mxfp8-gfx942-0.31.0" in worst.message

    again = many.run(choice.matrix(made, asked), orders.worker(orders.Order(twin=True), made), jobs=2)
    assert [row.outcome for row in again] == ["unchanged", "failed"]
    built = again[0].receipt
    assert built
    assert built.unchanged
    written = json.loads((made.output(built.target) / "twin.json").read_text())
    assert written["unchanged"]
    assert written["inputs_sha256"] == built.inputs_sha256


def test_both_vendors_at_a_time_and_a_base_that_is_gone(lookalike: Make, edited: Edited) -> None:
    rocm, cuda = lookalike(), lookalike(kind="cuda")

    def adopt(root: Path) -> None:
        rocm.adopt(root)
        replace(cuda, digest=f"sha256:{'0' * 64}").adopt(root)

    made = edited(adopt)
    asked = choice.Asked(variant="mxfp8")
    rows = many.run(choice.matrix(made, asked), orders.worker(orders.Order(), made), jobs=4)
    assert {row.target.split("-")[3]: row.outcome for row in rows} == {
        **dict.fromkeys(("gfx942", "gfx950"), "built"),
        **dict.fromkeys(("sm90", "sm100", "sm103"), "failed"),
    }
    bases = {row.receipt.base for row in rows if row.receipt}
    assert bases == {rocm.digest}
    gone = [row.error.message for row in rows if row.error]
    assert all("is gone: its registry answers" in message for message in gone)
    assert isinstance(many.worst(rows), errors.Missing)


def test_an_image_that_is_gone_or_stands_for_another_is_built_again(
    twin: Receipt, edited: Edited, client: docker.DockerClient
) -> None:
    made = edited(lambda _: None)
    target = plan.make(made, variant="bf16", arch="sm90")
    first = build.run(made, target, twin=True, reporter=QUIET)
    assert build.run(made, target, twin=True, reporter=QUIET).unchanged
    client.images.get(twin.digest).tag(first.image.partition(":")[0], tag="latest")
    second = build.run(made, target, twin=True, reporter=QUIET)
    assert (second.unchanged, second.digest) == (False, first.digest)
    client.images.remove(first.image)
    third = build.run(made, target, twin=True, reporter=QUIET)
    assert (third.unchanged, third.digest) == (False, first.digest)


def test_an_interrupt_ends_all_and_leaves_nothing(edited: Edited, real_catalog: Catalog, tmp_path: Path) -> None:
    def slow(root: Path) -> None:
        dockerfile = root / "images/twin/Dockerfile"
        dockerfile.write_text(dockerfile.read_text().replace("# not linked:", f"{SLOW}# not linked:"))

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = os.environ | {
        "KILN_ROOT": str(edited(slow).root),
        "KILN_HOME": str(real_catalog.state),
        "TMPDIR": str(scratch),
    }
    argv = process.python("-m", "kiln", "build", "--all", "--twin", "--arch", "sm100", "--jobs", "2")
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(argv, env=env, stdout=out, stderr=out) as child:
        until(lambda: len(bakes(scratch)) == 2)
        begun = time.monotonic()
        # to Kiln alone: what it runs must not need the terminal's own signal
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=WAIT_S) == 130
        assert time.monotonic() - begun < 20
    assert "interrupted" in log.read_text()
    assert bakes(scratch) == []
    assert list(scratch.iterdir()) == []


def bakes(scratch: Path) -> list[int]:
    """Return the builds that run with their document in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes()
        except OSError:
            continue
        if b"--file=" + bytes(scratch) in words:
            found.append(int(place.parent.name))
    return found


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_mirror_gives_the_same_digest(
    lookalike: Make, edited: Edited, real_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official registry is out of reach here: once the base comes from one mirror, once from a copy of it."""
    base = lookalike()
    copy = f"{real_engine.registry}/kiln-test/mirror"
    create = (*real_engine.buildx, "imagetools", "create", f"--tag={copy}:1", base.reference)
    process.ask(create, env=real_engine.environment())
    catalog = edited(base.adopt)
    mirrored = catalog.config.model_copy(update={"mirrors": {"docker.io/vllm/vllm-openai-rocm": copy}})
    other = replace(catalog, config=mirrored)
    target = plan.make(catalog, variant="bf16", arch="gfx950")
    assert other.mirrored(target.image.reference) == f"{copy}@{base.digest}"

    first = build.run(catalog, target, twin=False, reporter=QUIET)
    with_cache = bake.command
    monkeypatch.setattr(bake, "command", lambda *args, **options: (*with_cache(*args, **options), "--no-cache"))
    second = build.run(other, target, twin=False, reporter=QUIET, how=build.How(rebuild=True))
    assert (second.digest, second.inputs_sha256) == (first.digest, first.inputs_sha256)
    assert build.run(catalog, target, twin=False, reporter=QUIET).unchanged


def test_an_image_above_its_budget_is_not_tagged(edited: Edited, client: docker.DockerClient) -> None:
    def poor(root: Path) -> None:
        path = root / "images/releases.yaml"
        releases = yaml.safe_load(path.read_text())
        releases["budgets"]["twin"]["added_mb"] = 30
        path.write_text(yaml.safe_dump(releases, sort_keys=False))

    made = edited(poor)
    target = plan.make(made, variant="mxfp4", arch="gfx950")
    before = tagged(client, f"kiln/{target.target.slug}-twin")
    with pytest.raises(errors.Findings, match="its budget is 30 MB") as caught:
        build.run(made, target, twin=True, reporter=QUIET)
    assert caught.value.exit_code == 6
    assert tagged(client, f"kiln/{target.target.slug}-twin") == before


def tagged(client: docker.DockerClient, name: str) -> dict[str, str]:
    """Return the images of a name by their tags: a person may have built the same target before."""
    return {tag: str(image.id) for image in client.images.list(name) for tag in image.tags}


def test_a_receipt_that_is_wrong_makes_nothing_unchanged(
    twin: Receipt, edited: Edited, client: docker.DockerClient
) -> None:
    made = edited(lambda _: None)
    target = plan.make(made, variant="bf16", arch="sm90")
    first = build.run(made, target, twin=True, reporter=QUIET)
    folder = made.output(target.target.slug)
    wrong = {
        "no image's name": replace(first, image="###"),
        "a registry that does not answer": replace(first, image=f"127.0.0.1:1/x@{first.digest}"),
        "no image": replace(first, digest="###"),
        "another image": replace(first, digest=twin.digest, image="kiln-test/twin:session"),
        "other inputs": replace(first, inputs_sha256="0" * 64),
    }
    for what, each in wrong.items():
        receipt.write(folder, each)
        again = build.run(made, target, twin=True, reporter=QUIET)
        assert (again.unchanged, again.digest) == (False, first.digest), what
    receipt.write(folder, replace(first, ledger_sha256="0" * 64, series=(), base="", layers=0))
    again = build.run(made, target, twin=True, reporter=QUIET)
    assert again.unchanged
    assert (again.ledger_sha256, again.series, again.base) == (first.ledger_sha256, first.series, first.base)
    assert again.layers == len(client.images.get(first.digest).attrs["RootFS"]["Layers"])

    budgets = made.releases.budgets.model_copy(update={"twin": records.Budget(added_mb=300, layers=1)})
    tight = replace(made, releases=made.releases.model_copy(update={"budgets": budgets}))
    with pytest.raises(errors.Findings, match="and its budget is 1"):
        build.run(tight, target, twin=True, reporter=QUIET)
