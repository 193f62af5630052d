"""The catalog's images locked against a registry in this process: what is written, what is found, what is asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from lock_world import CUDA, FIRST, ROCM, SECOND, R, World, put_index, tree
from registry_support import Reply, digest

from conftest import TOY_BEFORE, TOY_PATH
from kiln import catalog, errors, plan
from kiln.catalog import lock_records, locked
from kiln.image.base import Package
from kiln.lock import base, packages, reading
from kiln.lock import run as locking
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiln.lock.run import Result
    from kiln.registry.image import RemoteImage

ROOT = "usr/local/lib/python3.12/dist-packages"


def confirmed(digest: str, at: str = FIRST) -> lock_records.LockedDigest:
    return lock_records.LockedDigest(digest=digest, confidence="registry", confirmed=at)


def write_lock(world: World, entry: lock_records.LockedImage) -> None:
    data = json.loads(world.text)
    data["images"][CUDA] = entry.model_dump(mode="json")
    (world.root / locked.LOCK).write_text(json.dumps(data), encoding="utf-8")


def problems(result: Result) -> list[tuple[str, str]]:
    return [(finding.where, finding.problem) for finding in result.findings]


def test_tags_become_digests_with_the_time_of_their_confirmation(world: World) -> None:
    result = world.lock()
    assert (result.findings, result.silent, result.unconfirmed, result.unknown) == ((), (), (), ())
    loaded = catalog.load(world.root)
    cuda, rocm = (loaded.lock.images[name] for name in (CUDA, ROCM))
    assert (cuda.index, cuda.manifest) == (confirmed(world.index), confirmed(world.manifests["vllm-openai"]))
    assert (rocm.index, rocm.manifest) == (None, confirmed(world.manifests["vllm-openai-rocm"]))
    assert (cuda.locked, rocm.locked) == (FIRST, FIRST)
    image = plan.make(loaded, variant="mxfp8", arch="sm100", release=R).image
    assert image.digest == world.manifests["vllm-openai"]
    assert (image.confidence, image.verified) == ("registry", True)


def test_locking_twice_writes_the_same_bytes_and_reads_no_more_than_its_index(world: World) -> None:
    world.lock()
    before = world.text
    world.registry.asked.clear()
    world.at(SECOND)
    result = world.lock()
    assert (result.written, world.text) == (False, before)
    read = [asked.path for asked in world.registry.asked if asked.method == "GET"]
    assert read == [f"/v2/vllm/vllm-openai/manifests/{world.index}"]
    assert len(world.registry.asked) == 5


def test_a_foreign_manifest_beside_the_right_index_is_found(world: World) -> None:
    world.lock()
    foreign = world.image("vllm-openai", b"foreign")
    lock = catalog.load(world.root).lock
    edited = lock.images[CUDA].model_copy(update={"manifest": confirmed(foreign)})
    write_lock(world, edited)
    with pytest.raises(errors.BadInput, match=r"was changed by something else than \./inv lock"):
        catalog.load(world.root)
    write_lock(world, locked.sealed(edited))
    ((where, problem),) = problems(world.lock())
    assert where == CUDA
    assert problem.startswith(f"the lock names another image than its own index does: linux/amd64 {foreign} ")
    write_lock(world, edited)
    result = world.lock(release="0.33.0", offline=True)
    assert result.damaged == (CUDA,)
    assert catalog.load(world.root).lock.images[CUDA].manifest is None


def test_an_index_whose_image_is_missing_or_another_index_is_found(world: World) -> None:
    repository = "vllm/vllm-openai"
    put_index(world.registry, repository, f"v{R}", {"amd64": world.arm})
    assert "it is for linux/arm64, not linux/amd64" in problems(world.lock())[0][1]
    put_index(world.registry, repository, f"v{R}", {"amd64": world.index})
    assert "its index names another index" in problems(world.lock())[0][1]
    gone = world.image("vllm-openai", b"gone")
    world.tag(gone)
    del world.registry.manifests[f"{repository}@{gone}"]
    result = world.lock()
    assert problems(result)[0][1].endswith(f"{repository}@{gone}: the registry does not have it")
    assert (result.silent, result.unknown) == ((), (CUDA,))


def test_a_variant_of_the_platform_is_it_in_every_place(world: World) -> None:
    amd64 = world.registry.put_image("vllm/vllm-openai-rocm", f"v{R}", tree({"a": b""}), variant="v1")
    assert world.lock().lock.images[ROCM].manifest == confirmed(amd64)


def test_what_another_run_wrote_meanwhile_stays(world: World) -> None:
    early = catalog.load(world.root, locked=False)
    world.lock()
    before = world.text
    locking.run(early, locking.Wish(release=R, offline=True), Reporter(quiet=True))
    assert world.text == before


def test_only_the_release_that_was_asked_for_changes(world: World) -> None:
    others = {
        name: entry for name, entry in catalog.load(world.root, locked=False).lock.images.items() if R not in name
    }
    world.lock()
    assert {name: entry for name, entry in catalog.load(world.root).lock.images.items() if R not in name} == others


def test_a_dry_run_writes_nothing(world: World) -> None:
    before = world.text
    result = world.lock(dry_run=True)
    assert (result.written, world.text) == (False, before)
    assert result.lock.images[ROCM].manifest == confirmed(world.manifests["vllm-openai-rocm"])


def test_a_moved_tag_is_found_and_the_lock_stays_until_it_is_accepted(world: World) -> None:
    world.lock()
    before = world.text
    new = world.image("vllm-openai", b"second")
    index = world.tag(new)
    world.at(SECOND)
    result = world.lock()
    old = world.manifests["vllm-openai"]
    moved = (
        f"the tag moved: index {world.index} (confirmed {FIRST}) -> {index}; "
        f"linux/amd64 {old} (confirmed {FIRST}) -> {new}; it stays locked to the old one"
    )
    assert (problems(result), world.text) == ([(CUDA, moved)], before)
    assert result.findings[0].hint.endswith(f": ./inv lock --accept-moved {CUDA}")
    accepted = world.lock(accepted=CUDA)
    assert accepted.findings == ()
    entry = catalog.load(world.root).lock.images[CUDA]
    assert (entry.index, entry.manifest) == (confirmed(index, SECOND), confirmed(new, SECOND))


def test_an_image_that_is_not_there_cannot_be_accepted(world: World) -> None:
    with pytest.raises(errors.BadInput) as caught:
        world.lock(accepted=f"{CUDA}0")
    assert caught.value.message == f"--accept-moved: unknown image '{CUDA}0'; did you mean '{CUDA}'?"
    with pytest.raises(errors.BadInput, match=r"unknown release '0\.31\.9'"):
        world.lock(release="0.31.9")


def test_a_locked_digest_that_is_gone_is_found(world: World) -> None:
    world.lock()
    before, repository = world.text, "vllm/vllm-openai-rocm"
    old = world.manifests["vllm-openai-rocm"]
    del world.registry.manifests[f"{repository}@{old}"]
    del world.registry.tags[f"{repository}:v{R}"]
    gone = f"the locked {old} is gone from the registry: no build can pull it"
    assert problems(world.lock()) == [(ROCM, "the registry has no such tag"), (ROCM, gone)]
    assert world.text == before


def test_a_public_record_that_the_registry_contradicts_stays_and_is_found(world: World) -> None:
    wrong = digest(b"wrong")
    world.write(manifest=wrong)
    result = world.lock()
    right = world.manifests["vllm-openai"]
    said = (
        f"the tag holds something else than is locked: linux/amd64 {wrong} (public records, confidence B) -> {right}; "
        "it stays locked to the old one"
    )
    gone = f"the locked {wrong} is gone from the registry: no build can pull it"
    assert problems(result) == [(CUDA, said), (CUDA, gone)]
    assert result.unconfirmed == (CUDA,)


def test_what_asks_a_registry_is_refused_offline(world: World) -> None:
    for wish, flag in (({"bases": True}, "--bases"), ({"accepted": CUDA}, "--accept-moved")):
        with pytest.raises(errors.BadInput, match=f"^{flag} asks a registry, and --offline asks none"):
            world.lock(offline=True, **wish)


# a registry that gives no answer, or a wrong one


def test_a_registry_that_cannot_be_reached_is_said_once_and_records_keep_their_confidence(world: World) -> None:
    (world.root / "kiln.yaml").write_text("mirrors:\n  docker.io/vllm: 127.0.0.1:9/vllm\n", encoding="utf-8")
    result = world.lock()
    (silence,) = result.silent
    assert (silence.host, sorted(silence.images)) == ("127.0.0.1:9", sorted((CUDA, ROCM)))
    assert silence.reason.endswith("127.0.0.1:9 cannot be reached: no connection")
    assert (result.findings, result.unknown) == ((), (ROCM, CUDA))
    index = catalog.load(world.root).lock.images[CUDA].index
    assert index == lock_records.LockedDigest(digest=world.index, confidence="B")


def test_a_registry_that_is_silent_takes_no_confirmation_away(world: World) -> None:
    world.lock()
    before = world.text
    (world.root / "kiln.yaml").write_text("mirrors:\n  docker.io/vllm: 127.0.0.1:9/vllm\n", encoding="utf-8")
    assert (world.lock().findings, world.text) == ((), before)
    assert (world.lock(offline=True).silent, world.text) == ((), before)


def test_one_image_that_is_refused_does_not_hide_the_others(world: World) -> None:
    world.registry.script("HEAD", f"/v2/vllm/vllm-openai-rocm/manifests/v{R}", Reply(status=403))
    result = world.lock()
    (silence,) = result.silent
    assert silence.images == (ROCM,)
    assert "HTTP 403" in silence.reason
    assert result.lock.images[CUDA].index == confirmed(world.index)


def test_an_index_that_is_not_what_its_digest_says_is_found(world: World) -> None:
    kind, data = world.registry.manifests[f"vllm/vllm-openai@{world.index}"]
    headers = {"Content-Type": kind, "Docker-Content-Digest": world.index}
    path = f"/v2/vllm/vllm-openai/manifests/{world.index}"
    world.registry.script("GET", path, Reply(headers=headers, body=data + b" "))
    result = world.lock()
    ((where, problem),) = problems(result)
    assert where == CUDA
    assert problem.startswith("what the registry says cannot be used: ")
    assert "digest" in problem
    assert result.lock.images[CUDA].index == lock_records.LockedDigest(digest=world.index, confidence="B")


def test_an_index_for_other_machines_is_found(world: World) -> None:
    index = put_index(world.registry, "vllm/vllm-openai", f"v{R}", {"arm64": world.arm})
    said = f"vllm/vllm-openai@{index}: nothing for linux/amd64; it is there for linux/arm64"
    assert problems(world.lock()) == [(CUDA, f"what the registry says cannot be used: {said}")]


def test_a_manifest_for_other_machines_is_found(world: World) -> None:
    arm = world.registry.put_image("vllm/vllm-openai-rocm", f"v{R}", tree({"a": b""}), architecture="arm64")
    said = f"vllm/vllm-openai-rocm@{arm}: it is for linux/arm64, not linux/amd64"
    assert problems(world.lock()) == [(ROCM, f"what the registry says cannot be used: {said}")]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"{" * 100_000, b"x" * 5_000_000])
def test_an_answer_that_is_no_manifest_is_found(world: World, body: bytes) -> None:
    world.registry.put("vllm/vllm-openai-rocm", f"v{R}", body, "text/html")
    ((where, problem),) = problems(world.lock())
    assert where == ROCM
    assert problem.startswith("what the registry says cannot be used: ")


# the lock and releases.yaml


def test_an_edit_without_locking_again_stops_every_task(world: World) -> None:
    world.lock()
    world.write(index=digest(b"other"))
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(world.root)
    at = f"images/lock.json: {CUDA}: images/releases.yaml: releases.{R}.cuda.image was edited after it was locked"
    assert caught.value.message == f"{at}; lock it again: ./inv lock"
    assert (caught.value.hint, caught.value.exit_code) == ("./inv lock", 2)
    world.lock(offline=True)
    entry = catalog.load(world.root).lock.images[CUDA]
    assert entry.index == lock_records.LockedDigest(digest=digest(b"other"), confidence="B")
    assert entry.manifest is None


def test_an_image_that_is_not_locked_and_one_that_no_release_has_are_named(world: World) -> None:
    world.lock()
    data = json.loads(world.text)
    data["images"]["docker.io/vllm/vllm-openai:v0"] = data["images"].pop(CUDA)
    (world.root / locked.LOCK).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(world.root)
    where = f"images/releases.yaml: releases.{R}.cuda.image"
    assert caught.value.message.splitlines() == [
        f"images/lock.json: {CUDA} is not locked, and {where} names it; lock it: ./inv lock",
        "images/lock.json: docker.io/vllm/vllm-openai:v0: no release has this image any more; lock again: ./inv lock",
    ]
    world.lock(release="", offline=True)
    assert "docker.io/vllm/vllm-openai:v0" not in catalog.load(world.root).lock.images


def test_an_entry_under_another_name_is_named(world: World) -> None:
    data = json.loads(world.text)
    data["images"][CUDA] = data["images"][ROCM]
    (world.root / locked.LOCK).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(errors.BadInput, match=f"images/lock.json: {CUDA}: holds {ROCM}; lock it again"):
        catalog.load(world.root)


def test_two_places_that_say_different_things_of_one_image_are_named(world: World) -> None:
    path = world.root / "images/releases.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("tag: v0.32.0", f"tag: v{R}"), encoding="utf-8")
    other = f"images/releases.yaml: releases.0.32.0.cuda.image: other digests of {CUDA} than releases.{R}.cuda.image"
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(world.root)
    assert other in caught.value.message.splitlines()
    with pytest.raises(errors.BadInput) as caught:
        world.lock()
    assert caught.value.message == other


def test_the_lock_of_the_catalog_is_as_it_is_written() -> None:
    real = catalog.load(Path(__file__).resolve().parents[2])
    assert (real.root / locked.LOCK).read_text(encoding="utf-8") == locked.text(real.lock)
    assert real.lock.debian.keys() == {"base", "builder"}


def test_a_catalog_without_a_lock_is_refused_but_by_who_makes_it(world: World) -> None:
    (world.root / locked.LOCK).unlink()
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(world.root)
    assert caught.value.message == "images/lock.json: cannot be read: No such file or directory"
    assert caught.value.hint == "./inv lock"
    assert world.lock(release="", offline=True).written
    assert len(catalog.load(world.root).lock.images) == 24


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not what ./inv lock writes: Expecting property name"),
        ('{"images": {}, "images": {}}', "is not what ./inv lock writes: a key is given twice"),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
        ("[]", "Input should be an object"),
        ('{"image": {}}', "image: unknown key 'image'; did you mean 'images'?"),
        ("[" * 100_000, "is not what ./inv lock writes: "),
    ],
)
@pytest.mark.parametrize("for_who_makes_it", [False, True])
def test_a_lock_that_is_damaged_is_never_thrown_away(
    world: World, text: str, problem: str, *, for_who_makes_it: bool
) -> None:
    (world.root / locked.LOCK).write_text(text, encoding="utf-8")
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(world.root, locked=not for_who_makes_it)
    assert f"images/lock.json: {problem}" in caught.value.message
    again = "git checkout images/lock.json; or delete it, then ./inv lock"
    assert caught.value.hint == (again if for_who_makes_it else "./inv lock")


def test_a_confirmation_without_its_time_is_refused(world: World) -> None:
    world.lock()
    (world.root / locked.LOCK).write_text(world.text.replace(f'"confirmed": "{FIRST}"', '"confirmed": null', 1))
    with pytest.raises(errors.BadInput, match="has the time of its confirmation if, and only if"):
        catalog.load(world.root)


def test_new_editions_need_no_new_lock(world: World) -> None:
    world.lock()
    path = world.root / "patches/toy/patch.yaml"
    path.write_text(path.read_text().replace(TOY_PATH, "vllm/other.py"))
    assert catalog.load(world.root).patches["toy"].editions[R].files.keys() == {"vllm/other.py"}


# what the layers hold


def official(edits: Mapping[str, bytes] = MappingProxyType({})) -> tuple[bytes, ...]:
    """Return the layers of an image with vLLM in the middle one."""
    middle = {
        f"{ROOT}/vllm/_version.py": b"__version__ = '0.31.0'\n",
        f"{ROOT}/{TOY_PATH}": TOY_BEFORE,
        f"{ROOT}/vllm-0.31.0+rocm723.dist-info/METADATA": b"Version: 0.31.0+rocm723\n",
        f"{ROOT}/vllm-0.31.0+rocm723.dist-info/RECORD": b"vllm/toy.py,,\n",
    }
    top = {
        f"{ROOT}/vllm/__pycache__/toy.cpython-312.pyc": b"code",
        f"{ROOT}/vllm/__pycache__/other.cpython-312.pyc": b"code",
        "root/.triton/cache/kernel": b"old",
        "tmp/.wh.torchinductor_root": b"",
        "tmp/torchinductor_me/x/kernel": b"old",
        "data/jit/kernel": b"old",
        "root/.cache/vllm": b"no folder",
    }
    bottom = {f"{ROOT}/torch-2.13.0+git1.dist-info/METADATA": b"", "tmp/torchinductor_root/x": b"", "etc/passwd": b""}
    return tree(bottom), tree({**middle, **edits}), tree(top)


def place(world: World, *layers: bytes) -> str:
    """Let the ROCm tag name an image of these layers; return the digest of the one with vLLM."""
    repository = "vllm/vllm-openai-rocm"
    env = ["PATH=/bin", "TRITON_CACHE_DIR=/data/jit", "VLLM_CACHE_ROOT=../x", "TORCHINDUCTOR_CACHE_DIR=/", "odd"]
    named = world.registry.put_image(repository, f"v{R}", *layers, config={"Env": env})
    manifest = json.loads(world.registry.manifests[f"{repository}@{named}"][1])
    return str(manifest["layers"][1]["digest"])


def test_what_the_layers_hold_is_locked_once_for_each_digest(world: World) -> None:
    vllm_layer = place(world, *official())
    world.lock(bases=True)
    made = catalog.load(world.root)
    held = made.lock.images[ROCM].base
    assert held
    assert held.layers[held.record_layer] == vllm_layer
    assert held.model_dump(exclude={"layers", "diff_ids", "modes", "reader"}) == {
        "root": ROOT,
        "dist_info": "vllm-0.31.0+rocm723.dist-info",
        "record_sha256": digest(b"vllm/toy.py,,\n").removeprefix("sha256:"),
        "record_layer": 1,
        "files": {TOY_PATH: digest(TOY_BEFORE).removeprefix("sha256:")},
        "bytecode": ("vllm/__pycache__/toy.cpython-312.pyc",),
        "caches": ("data/jit", "root/.triton/cache", "tmp/torchinductor_me"),
        "versions": {"torch": "2.13.0+git1", "vllm": "0.31.0+rocm723"},
    }
    assert held.diff_ids == tuple(digest(layer) for layer in official())
    folders = [ROOT.rsplit("/", n)[0] for n in range(5)]
    inside = ("vllm", "vllm/__pycache__", "vllm-0.31.0+rocm723.dist-info")
    files = ("vllm/toy.py", "vllm/__pycache__/toy.cpython-312.pyc", "vllm-0.31.0+rocm723.dist-info/RECORD")
    expected = dict.fromkeys(
        [*folders, *("data", "root", "root/.triton", "tmp"), *(f"{ROOT}/{each}" for each in inside)], "0755"
    )
    assert held.modes == expected | {f"{ROOT}/{each}": "0644" for each in files}
    target = plan.make(made, variant="mxfp8", arch="gfx942", release=R)
    assert base.recorded(made, target) == held
    world.registry.asked.clear()
    before = world.text
    world.lock(bases=True)
    assert world.text == before
    assert not [asked for asked in world.registry.asked if "/vllm-openai-rocm/blobs/" in asked.path]


def test_what_was_read_is_kept_when_the_next_base_is_interrupted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place(world, *official())
    read = reading.read

    def interrupted(image: RemoteImage, *rest: object) -> lock_records.Base:
        if image.repository == "vllm/vllm-openai":
            raise KeyboardInterrupt
        return read(image, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.lock(bases=True)
    images = catalog.load(world.root).lock.images
    assert (bool(images[ROCM].base), images[CUDA].base) == (True, None)
    assert images[CUDA].manifest == confirmed(world.manifests["vllm-openai"])


def test_a_base_that_is_not_the_wheel_is_found(world: World) -> None:
    place(world, *official({f"{ROOT}/{TOY_PATH}": b"edited"}))
    found = {finding.where: finding.problem for finding in world.lock(bases=True).findings if finding.where != CUDA}
    pinned = "2.13.0+git733fca1"
    assert found[f"{ROCM}: torch"] == f"is 2.13.0+git1, and the pin torch_reported is {pinned}"
    ((where, problem),) = [(where, problem) for where, problem in found.items() if ROOT in where]
    assert where == f"{ROCM}: {ROOT}/{TOY_PATH}"
    was, now = (digest(data).removeprefix("sha256:") for data in (TOY_BEFORE, b"edited"))
    assert problem == f"holds sha256 {now}, and the edition was made for sha256 {was}"
    again = {finding.where for finding in world.lock(offline=True).findings}
    assert again == set(found), "it stays a finding while it is locked"


def test_a_base_without_vllm_is_found_and_nothing_of_it_is_kept(world: World) -> None:
    place(world, *official()[:1], tree({}), tree({"a": b""}))
    found = [finding.problem for finding in world.lock(bases=True).findings if finding.where == ROCM]
    assert len(found) == 1
    assert found[0].endswith("it must hold one vLLM, and vllm/_version.py lies in no folder")
    made = catalog.load(world.root)
    with pytest.raises(errors.BadInput) as caught:
        base.recorded(made, plan.make(made, variant="mxfp8", arch="gfx942", release=R))
    assert caught.value.message == f"{ROCM}: what its layers hold is not known: it was never read"
    assert caught.value.hint == f"./inv lock --bases --release {R}"


def test_a_name_that_no_lock_holds_is_found(world: World) -> None:
    place(world, *official({f"{ROOT}/vllm/__pycache__/toy.c\x1b[31m.pyc": b""}))
    found = [finding.problem for finding in world.lock(bases=True).findings if finding.where == ROCM]
    assert len(found) == 1
    assert ": it holds names that Kiln does not write down: " in found[0]
    assert found[0].endswith(", 'vllm/__pycache__/toy.c\\x1b[31m.pyc'")


def test_a_layer_that_is_not_what_its_digest_says_is_found(world: World) -> None:
    layer = place(world, *official())
    world.registry.blobs[layer] = world.registry.blobs[layer][:-1] + b"x"
    found = [finding.problem for finding in world.lock(bases=True).findings if finding.where == ROCM]
    assert len(found) == 1
    assert catalog.load(world.root).lock.images[ROCM].base is None


def test_a_base_is_read_again_once_a_patch_touches_more_of_it(world: World) -> None:
    place(world, *official())
    world.lock(bases=True)
    path = world.root / "patches/toy/patch.yaml"
    path.write_text(path.read_text().replace(f"      {TOY_PATH}: ", f"      {TOY_PATH}x: "))
    made = catalog.load(world.root)
    with pytest.raises(errors.BadInput) as caught:
        base.recorded(made, plan.make(made, variant="mxfp8", arch="gfx942", release=R))
    assert caught.value.message == f"{ROCM}: its layers were read before a patch touched {TOY_PATH}x"
    world.lock(bases=True)
    held = catalog.load(world.root).lock.images[ROCM].base
    assert held
    assert held.files == {f"{TOY_PATH}x": None}


def test_a_base_of_another_reader_is_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place(world, *official())
    world.lock(bases=True)
    monkeypatch.setattr(lock_records, "READER", lock_records.READER + 1)
    world.lock(bases=True)
    held = catalog.load(world.root).lock.images[ROCM].base
    assert held
    assert held.reader == lock_records.READER


def test_every_distribution_that_a_pin_is_compared_with_is_read() -> None:
    assert {"flydsl", "amd-triton", "triton-rocm", "nvidia-nccl-cu12", "torch", "vllm"} <= reading.DISTRIBUTIONS


def test_two_places_with_vllm_are_found(world: World) -> None:
    place(world, *official({"usr/lib/python3/dist-packages/vllm/_version.py": b""}))
    found = [finding.problem for finding in world.lock(bases=True).findings if finding.where == ROCM]
    assert "it must hold one vLLM, and vllm/_version.py lies in " in found[0]


# Debian's packages


def test_the_packages_of_a_twin_that_differ_are_named() -> None:
    was = tuple(lock_records.LockedPackage(name=name, version="1", sha256="0" * 64) for name in "abcdefg")
    lock = lock_records.Lock(debian={"base": was})
    same = [Package(name=each.name, version=each.version, sha256=each.sha256) for each in reversed(was)]
    assert list(packages.differences(lock, base=same, builder=same)) == []
    others = [Package(name="a", version="2", sha256="0" * 64), *same[:1]]
    assert list(packages.differences(lock, base=others, builder=[])) == [
        (
            "the twin's base has other Debian packages than images/lock.json records: "
            "a 1 -> 2, b 1 -> none, c 1 -> none, d 1 -> none, e 1 -> none and 1 more"
        )
    ]
