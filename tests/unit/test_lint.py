from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, errors, git, lint, plan
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# the toy of conftest.py, as its catalog says it is
PATH = "vllm/toy.py"
BEFORE = b"# one\n# two\n# three\nWORD = 'before'\n# five\n# six\n# seven\n"
AFTER = BEFORE.replace(b"before", b"after")
TOY = "patches/toy/patch.yaml"
EDITION = "patches/toy/0.31.0.patch"
WRONG = "b" * 64


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def root(toy_catalog: Path) -> Path:
    """A catalog in which nothing is to be found: the toy with its probe, canonical, its pristine file at hand."""
    (toy_catalog / "patches/toy/probe.py").write_text("print('red')\n")
    (toy_catalog / "patches/toy/tests").mkdir()
    hold(toy_catalog, BEFORE)
    rewrite(toy_catalog, git.diff({PATH: BEFORE}, {PATH: AFTER}))
    return toy_catalog


def hold(root: Path, pristine: bytes, path: str = PATH, release: str = "0.31.0") -> None:
    loaded = catalog.load(root)
    pin = loaded.releases.releases[release].wheel
    wheel.keep(pin, path, pristine, cache=loaded.state / "wheels")


def rewrite(root: Path, edition: bytes) -> None:
    """Change the toy's edition, and its hash in patch.yaml."""
    old = sha256((root / EDITION).read_bytes())
    (root / EDITION).write_bytes(edition)
    described = root / TOY
    described.write_text(described.read_text().replace(old, sha256(edition)))


def change(root: Path, old: str, new: str, file: str = TOY) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


def another(
    root: Path, patch_id: str, edition: bytes, *, files: Mapping[str, tuple[bytes, bytes]], extra: str = ""
) -> None:
    """Add a patch of its own after the toy."""
    folder = root / "patches" / patch_id
    (folder / "tests").mkdir(parents=True)
    (folder / "probe.py").write_text("")
    (folder / "0.31.0.patch").write_bytes(edition)
    rows = "".join(
        f"      {path}: {{pre: {sha256(pre)}, post: {sha256(post)}}}\n" for path, (pre, post) in files.items()
    )
    (folder / "patch.yaml").write_text(
        f"id: {patch_id}\ntitle: Another\nreason: to be second\nlost_without: nothing\ndrop_when: never\n"
        "upstream: {status: not-reported}\n"
        f'applies: {{releases: "==0.31.0"}}\nprobe: {{needs: source, shows: nothing}}\n{extra}'
        f"editions:\n  0.31.0:\n    sha256: {sha256(edition)}\n    files:\n{rows}"
    )
    change(root, "toy]", f"toy, {patch_id}]", "patches/series.yaml")


def second(root: Path, extra: str = "") -> None:
    """Add a patch on the bytes that the toy leaves."""
    last = AFTER.replace(b"after", b"last")
    another(root, "second", git.diff({PATH: AFTER}, {PATH: last}), files={PATH: (AFTER, last)}, extra=extra)


def found(root: Path) -> list[tuple[str, str]]:
    return [(finding.where, finding.problem) for finding in lint.patches(catalog.load(root))]


def test_nothing_is_found_where_nothing_is_wrong(root: Path) -> None:
    (root / "patches/toy/EVIDENCE.md").write_text("")
    (root / "patches/README.md").write_text("")
    (root / "patches/toy/__pycache__").mkdir()
    assert found(root) == []


def test_a_patch_on_what_the_one_before_it_leaves_is_right(root: Path) -> None:
    second(root, "requires: [toy]\n")
    assert found(root) == []


def test_every_finding_says_what_comes_next(root: Path) -> None:
    change(root, "nothing\nupstream", "' '\nupstream")
    (root / "patches/toy/probe.py").unlink()
    rewrite(root, git.diff({PATH: BEFORE}, {PATH: AFTER}).replace(b"# two", b"# too"))
    findings = list(lint.patches(catalog.load(root)))
    assert len(findings) == 3
    assert all(finding.hint for finding in findings)


@pytest.mark.parametrize(
    ("edit", "where", "problem"),
    [
        (("reason: to be applied", "reason: ' '"), "reason", "is empty"),
        (("lost_without: nothing", "lost_without: ' '"), "lost_without", "is empty"),
        (("drop_when: never", "drop_when: ' '"), "drop_when", "is empty"),
        (("title: One word", "title: 'TODO: say'"), "title", "is still 'TODO: say'"),
        (("status: not-reported", "status: open"), "upstream.links", "status is open, and no link shows it"),
        (
            ("{status: not-reported}", "{status: merged, links: [x]}"),
            "upstream_since",
            "is missing, and upstream.status is merged",
        ),
        (
            ("{status: not-reported}", "{status: withdrawn, links: [x]}\nupstream_since: 0.32.0"),
            "withdrawn_in",
            "is missing, and upstream.status is withdrawn",
        ),
        (
            ("{status: not-reported}", "{status: open, links: [x]}\nupstream_since: 0.33.0"),
            "upstream_since",
            "names 0.33.0, but upstream.status is open",
        ),
        (
            ("{status: not-reported}", "{status: merged, links: [x]}\nupstream_since: 0.31.0"),
            "applies.releases",
            "covers 0.31.0, but vLLM has this since 0.31.0",
        ),
        (
            ("{status: not-reported}", "{status: merged, links: [x]}\nupstream_since: 0.34.0"),
            "upstream_since",
            "unknown release '0.34.0'; did you mean '0.33.0'?",
        ),
        (
            ("editions:", "unported: [0.31.0]\neditions:"),
            "unported",
            "names 0.31.0, which has an edition",
        ),
        (
            ("editions:", "unported: [0.33.0]\neditions:"),
            "unported",
            "names 0.33.0, which is outside of applies.releases '==0.31.0'",
        ),
        (('"==0.31.0"', '">=0.31.0"'), "applies.releases", "covers 0.33.0, which has no edition"),
        (("editions:", "requires: [tyo]\neditions:"), "requires", "unknown patch 'tyo'; did you mean 'toy'?"),
        (("editions:", "conflicts: [zzz]\neditions:"), "conflicts", "unknown patch 'zzz'; known: toy"),
        (("editions:", "conflicts: [toy]\neditions:"), "conflicts", "names the patch itself"),
    ],
)
def test_a_wrong_field_of_a_patch_is_found(root: Path, edit: tuple[str, str], where: str, problem: str) -> None:
    change(root, *edit)
    assert (f"{TOY}: {where}", problem) in found(root)


def test_a_merged_patch_with_its_release_and_link_is_right(root: Path) -> None:
    change(root, "{status: not-reported}", "{status: merged, links: [x]}\nupstream_since: 0.33.0")
    assert found(root) == []


def test_a_patch_without_tests_is_found(root: Path) -> None:
    (root / "patches/toy/tests").rmdir()
    assert found(root) == [("patches/toy/tests", "is missing")]


def test_an_edition_that_nothing_uses_is_found(root: Path) -> None:
    change(root, '"==0.31.0"', '"<0.24.0"')
    problem = "is outside of applies.releases '<0.24.0', so nothing uses it"
    assert found(root) == [(f"{TOY}: editions.0.31.0", problem)]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("0.33.0.patch", "is not listed under editions"),
        ("0.31.0.patch.orig", "is none of the files of a patch"),
        ("notes.txt", "is none of the files of a patch"),
    ],
)
def test_a_foreign_file_in_a_patch_is_found(root: Path, name: str, problem: str) -> None:
    (root / "patches/toy" / name).write_text("")
    assert found(root) == [(f"patches/toy/{name}", problem)]


def test_a_folder_that_is_no_patch_is_found(root: Path) -> None:
    (root / "patches/half-made").mkdir()
    assert found(root) == [("patches/half-made", "belongs to no patch")]


def test_a_missing_probe_is_found(root: Path) -> None:
    (root / "patches/toy/probe.py").unlink()
    assert found(root) == [("patches/toy/probe.py", "is missing")]


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"def x(:\n", "line 1: invalid syntax"), (b"\0", "source code string cannot contain null bytes")],
)
def test_a_probe_that_is_no_python_is_found(root: Path, data: bytes, problem: str) -> None:
    (root / "patches/toy/probe.py").write_bytes(data)
    ((where, told),) = found(root)
    assert where == "patches/toy/probe.py"
    assert told.startswith("cannot be parsed:")
    assert told.endswith(problem)


def test_an_edition_with_another_hash_than_patch_yaml_is_found(root: Path) -> None:
    change(root, sha256((root / EDITION).read_bytes()), WRONG)
    ((where, problem),) = found(root)
    assert where == f"{TOY}: editions.0.31.0.sha256"
    assert problem == f"is {WRONG}, but {EDITION} has {sha256((root / EDITION).read_bytes())}"


def test_an_edition_with_a_short_index_line_is_found(root: Path) -> None:
    lines = git.diff({PATH: BEFORE}, {PATH: AFTER}).splitlines(keepends=True)
    assert lines[1].startswith(b"index ")
    rewrite(root, b"".join([lines[0], b"index 1234567..89abcde 100644\n", *lines[2:]]))
    ((where, problem),) = found(root)
    assert where == EDITION
    gits = lines[1].decode().rstrip()
    assert problem == f"is not canonical: line 2 is 'index 1234567..89abcde 100644', git writes '{gits}'"


def test_an_edition_with_less_context_is_found(root: Path) -> None:
    rewrite(
        root,
        f"--- a/{PATH}\n+++ b/{PATH}\n@@ -3,3 +3,3 @@\n # three\n-WORD = 'before'\n+WORD = 'after'\n # five\n".encode(),
    )
    ((where, problem),) = found(root)
    assert (where, problem.partition(":")[0]) == (EDITION, "is not canonical")


def test_an_edition_that_is_no_diff_is_found(root: Path) -> None:
    rewrite(root, b"garbage\n")
    ((where, problem),) = found(root)
    assert where == EDITION
    assert problem


def test_an_edition_that_does_not_fit_is_found(root: Path) -> None:
    rewrite(root, git.diff({PATH: BEFORE}, {PATH: AFTER}).replace(b" # two\n", b" # too\n"))
    assert found(root) == [(EDITION, "toy: does not fit vllm/toy.py")]


def test_an_edition_that_leaves_no_python_is_found(root: Path) -> None:
    broken = BEFORE.replace(b"WORD = 'before'", b"WORD = = 1")
    change(root, sha256(AFTER), sha256(broken))
    rewrite(root, git.diff({PATH: BEFORE}, {PATH: broken}))
    ((where, problem),) = found(root)
    assert where == EDITION
    assert problem.startswith(f"{PATH}: CONFLICT: expected a module that compiles, found line 4: ")


def test_a_wrong_pre_is_found(root: Path) -> None:
    change(root, sha256(BEFORE), WRONG)
    problem = f"is {WRONG}, but 0.31.0 and the patches before this one give {sha256(BEFORE)}"
    assert found(root) == [(f"{TOY}: editions.0.31.0.files.{PATH}.pre", problem)]


def test_a_pre_that_says_created_where_the_release_has_the_file_is_found(root: Path) -> None:
    change(root, f"pre: {sha256(BEFORE)}, ", "")
    problem = f"is absent, but 0.31.0 and the patches before this one give {sha256(BEFORE)}"
    assert found(root) == [(f"{TOY}: editions.0.31.0.files.{PATH}.pre", problem)]


def test_a_wrong_post_is_found(root: Path) -> None:
    change(root, sha256(AFTER), WRONG)
    problem = f"is {WRONG}, but the edition leaves {sha256(AFTER)}"
    assert found(root) == [(f"{TOY}: editions.0.31.0.files.{PATH}.post", problem)]


def test_files_that_patch_yaml_and_edition_do_not_share_are_found(root: Path) -> None:
    hold(root, b"x = 1\n", "vllm/other.py")
    change(root, f"{PATH}:", "vllm/other.py:")
    assert found(root) == [
        (EDITION, f"touches {PATH}, which patch.yaml does not name"),
        (EDITION, "does not touch vllm/other.py, which patch.yaml names"),
    ]


def test_created_and_deleted_files_are_right(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = {PATH: BEFORE}, {"vllm/new.py": b"x = 1\n"}
    hold(root, BEFORE)
    old = f"{PATH}: {{pre: {sha256(BEFORE)}, post: {sha256(AFTER)}}}"
    new = f"{PATH}: {{pre: {sha256(BEFORE)}}}\n      vllm/new.py: {{post: {sha256(b'x = 1' + bytes([10]))}}}"
    change(root, old, new)
    rewrite(root, git.diff(before, after))

    def read(_: object, paths: list[str], **__: object) -> dict[str, bytes]:
        return {path: before[path] for path in paths if path in before}

    monkeypatch.setattr(wheel, "read", read)
    assert found(root) == []


def test_an_index_that_cannot_be_reached_is_a_finding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> dict[str, bytes]:
        raise errors.Missing("the package index has no answer", hint="pip config list")

    monkeypatch.setattr(wheel, "read", read)
    ((where, problem),) = found(root)
    assert where == EDITION
    assert problem.startswith("could not be checked against the files of vllm-0.31.0")
    assert problem.endswith(".whl: the package index has no answer")


def test_the_same_edition_in_two_patches_is_found(root: Path) -> None:
    edition = (root / EDITION).read_bytes()
    another(root, "twice", edition, files={PATH: (BEFORE, AFTER)})
    assert found(root) == [("patches/twice/0.31.0.patch", f"has the same content as {EDITION}")]


def test_an_order_against_requires_is_found(root: Path) -> None:
    second(root)
    change(root, "editions:", "requires: [second]\neditions:")
    assert found(root) == [("patches/series.yaml", "toy comes before second, which it requires")]


def test_a_patch_both_required_and_in_conflict_is_found(root: Path) -> None:
    second(root, "requires: [toy]\nconflicts: [toy]\n")
    assert ("patches/second/patch.yaml: conflicts", "toy is also in requires") in found(root)


def test_a_series_with_a_conflict_is_found_once_for_all_its_targets(root: Path) -> None:
    second(root, "conflicts: [toy]\n")
    problem = "conflicts with toy, and the series needs both: bf16 on gfx942 with 0.31.0 and 13 more targets"
    assert found(root) == [("patches/second/patch.yaml", problem)]


def test_a_series_without_what_a_patch_requires_is_found(root: Path) -> None:
    second(root, "requires: [toy]\n")
    change(root, "applies: {", "applies: {variants: [mxfp8], arches: [gfx942], ")
    change(root, "applies: {", "applies: {variants: [mxfp8], arches: [gfx942, gfx950], ", "patches/second/patch.yaml")
    problem = "requires toy, which the series does not hold: mxfp8 on gfx950 with 0.31.0"
    assert found(root) == [("patches/second/patch.yaml", problem)]


# what a plan says of the same


def refusal(root: Path) -> errors.BadInput:
    with pytest.raises(errors.BadInput) as caught:
        plan.make(catalog.load(root), variant="mxfp8", arch="gfx942")
    return caught.value


def test_a_plan_refuses_a_series_with_a_conflict(root: Path) -> None:
    second(root, "conflicts: [toy]\n")
    slug = "minimax-m3-mxfp8-gfx942-0.31.0"
    assert refusal(root).message == f"{slug}: patches/second: conflicts with toy, and the series needs both"


def test_a_plan_refuses_a_series_without_what_a_patch_requires(root: Path) -> None:
    second(root, "requires: [toy]\n")
    change(root, "applies: {", "applies: {arches: [gfx950], ")
    message = refusal(root).message
    assert message.endswith(": patches/second: requires toy, which the series does not hold")
    assert refusal(root).exit_code == 2


def test_a_plan_holds_a_patch_and_what_it_requires(root: Path) -> None:
    second(root, "requires: [toy]\n")
    made = plan.make(catalog.load(root), variant="mxfp8", arch="gfx942")
    assert [use.id for use in made.series] == ["toy", "second"]
