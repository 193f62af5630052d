"""What drift reads: releases of an index on this machine, a real git repository; and what it says when it cannot."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import git
import pytest
from fake_index import Index, serving

from conftest import TOY_AFTER, TOY_BEFORE, TOY_PATH, sha256
from kiln import catalog as catalogs
from kiln import errors
from kiln.drift import bisect, columns, names, run
from kiln.drift.records import Verdict
from kiln.report import Reporter
from kiln.upstream import git_ref, index, pip_config

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from kiln.catalog import Catalog

QUIET = Reporter(quiet=True)
ENVS = b"environment_variables = {}\n"
SHIFTED = b"# zero\n" + TOY_BEFORE
OTHER = TOY_BEFORE.replace(b"'before'", b"'something else'")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with serving(monkeypatch) as made:
        yield made


@pytest.fixture
def toy(toy_catalog: Path, edit: Callable[[str, str, str], None], served: Index) -> Catalog:
    """Return the toy's catalog with the releases 0.31.0 and 0.32.0 as the index has them."""
    edit("patches/toy/patch.yaml", '"==0.31.0"', '">=0.31.0"')
    loaded = catalogs.load(toy_catalog)
    pins = loaded.releases.releases
    files = {"0.31.0": TOY_BEFORE, "0.32.0": SHIFTED}
    kept = {
        release: pins[release].model_copy(update={"wheel": served.add(release, {TOY_PATH: data})})
        for release, data in files.items()
    }
    releases = loaded.releases.model_copy(update={"releases": kept})
    return catalogs.Catalog(**vars(loaded) | {"releases": releases})


def nothing(_: Collection[str]) -> Collection[str]:
    return ()


def verdicts(catalog: Catalog, ask: run.Ask | None = None) -> dict[str, tuple[Verdict, bool]]:
    report = run.run(catalog, ask or run.Ask(patch="toy"), QUIET)
    return {cell.column: (cell.verdict, cell.known) for cell in report.cells}


# releases


def test_new_releases_are_found_and_judged(toy: Catalog, served: Index) -> None:
    served.add("0.34.0", {TOY_PATH: TOY_BEFORE})
    served.add("0.9.0", {TOY_PATH: OTHER})
    served.add("0.35.0.post1", {TOY_PATH: OTHER})
    served.add("0.36.0rc1", {TOY_PATH: OTHER})
    served.odd += [
        '<a href="/files/vllm-0.37.0-cp38-abi3-manylinux_2_28_aarch64.whl#sha256=00">no wheel for us</a>',
        '<a data-yanked="" href="/files/vllm-0.38.0-cp38-abi3-manylinux_2_28_x86_64.whl#sha256=00">yanked</a>',
    ]
    assert verdicts(toy) == {
        "0.31.0": (Verdict.CLEAN, True),
        "0.32.0": (Verdict.OFFSET, False),
        "0.34.0": (Verdict.CLEAN, True),
        "0.35.0.post1": (Verdict.CONFLICT, False),
        "0.37.0": (Verdict.UNKNOWN, False),
    }


def test_a_file_that_did_not_change_is_read_once_and_a_second_run_reads_nothing(toy: Catalog, served: Index) -> None:
    for release in ("0.34.0", "0.35.0", "0.36.0"):
        served.add(release, {TOY_PATH: TOY_BEFORE, "vllm/big.py": os.urandom(1_000_000)})
    columns.releases(toy, nothing, QUIET)
    tails = [path for path, wanted in served.asked if wanted.startswith("bytes=-")]
    assert len(tails) == 5
    first, served.asked = len(served.asked), []
    again = columns.releases(toy, nothing, QUIET)
    assert served.asked == [("/simple/vllm/", "")]
    assert again.fetched_bytes == 0
    assert first <= 1 + 5 + 1  # the page, five directories, and the one file that no tail holds
    assert {subject.files[TOY_PATH] for subject in again.subjects} == {TOY_BEFORE, SHIFTED}


def test_without_an_index_nothing_is_fine(toy: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    pip_config.read.cache_clear()
    assert verdicts(toy) == {
        "0.31.0": (Verdict.UNKNOWN, False),
        "0.32.0": (Verdict.UNKNOWN, False),
        "newest": (Verdict.UNKNOWN, False),
    }


def test_without_an_index_what_was_read_before_is_judged_and_new_releases_are_unknown(
    toy: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts(toy)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    pip_config.read.cache_clear()
    found = verdicts(toy)
    assert found["0.31.0"] == (Verdict.CLEAN, True)
    assert found["newest"] == (Verdict.UNKNOWN, False)


def test_a_wheel_that_was_replaced_is_unknown(toy: Catalog, served: Index) -> None:
    served.add("0.32.0", {TOY_PATH: TOY_BEFORE, "vllm/more.py": b""})
    assert verdicts(toy)["0.32.0"] == (Verdict.UNKNOWN, False)


def test_a_release_whose_wheel_is_damaged_is_unknown_and_the_others_are_judged(toy: Catalog, served: Index) -> None:
    served.add("0.34.0", {TOY_PATH: OTHER})
    name = next(name for name in served.wheels if "0.34.0" in name)
    served.wheels[name] = served.wheels[name].replace(b"WORD", b"WERD")
    found = verdicts(toy)
    assert found["0.34.0"] == (Verdict.UNKNOWN, False)
    assert found["0.31.0"] == (Verdict.CLEAN, True)


def test_only_what_is_asked_for_is_told(toy: Catalog) -> None:
    assert list(verdicts(toy, run.Ask(patch="toy", release="0.32.0"))) == ["0.32.0"]
    assert list(verdicts(toy, run.Ask(patch="toy", since="0.31.1"))) == ["0.32.0"]


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (run.Ask(patch="toi"), "unknown patch 'toi'; did you mean 'toy'?"),
        (run.Ask(release="0.99.0"), "no such release; there are: 0.31.0, 0.32.0"),
        (run.Ask(since="new"), "--since new: no release"),
        (run.Ask(force="toy@0.31.0"), "write it as PATCH@RELEASE=VERDICT"),
        (run.Ask(force="toy@0.31.0=BROKEN"), "write it as PATCH@RELEASE=VERDICT"),
        (run.Ask(patch="toy", force="toy@0.99.0=CONFLICT"), "no toy@0.99.0 among the patches and columns"),
        (run.Ask(ref="--upload-pack=x", git="."), "not a branch, tag or commit"),
        (run.Ask(ref="a..b", git="."), "not a branch, tag or commit"),
        (run.Ask(git="."), "--git goes with --ref"),
        (run.Ask(ref="main", image="x"), "give one of them"),
        (run.Ask(ref="main", since="0.31.0"), "give one of them"),
        (run.Ask(version="0.31.0"), "--as goes with --ref or --image"),
        (run.Ask(ref="main", version="new"), "--as new: no release"),
        (run.Ask(bisect="toy", patch="toy", version="1"), "leave --patch, --as out"),
    ],
)
def test_what_cannot_be_asked(toy: Catalog, ask: run.Ask, says: str) -> None:
    with pytest.raises(errors.BadInput, match=re.escape(says)):
        run.run(toy, ask, QUIET)


def test_a_change_that_releases_have_proposes_the_end_of_its_patch_with_the_first(toy: Catalog, served: Index) -> None:
    for release in ("0.34.0", "0.35.0"):
        served.add(release, {TOY_PATH: TOY_AFTER})
    report = run.run(toy, run.Ask(patch="toy"), QUIET)
    merged = [cell for cell in report.cells if cell.verdict is Verdict.MERGED]
    assert [(cell.column, cell.first, cell.known) for cell in merged] == [
        ("0.34.0", "0.34.0", False),
        ("0.35.0", "0.34.0", False),
    ]
    assert "+upstream_since: 0.34.0\n" in merged[0].diff
    assert "0.34.0" in merged[1].next


def test_a_verdict_can_be_forced_and_says_so(toy: Catalog) -> None:
    report = run.run(toy, run.Ask(patch="toy", force="toy@0.31.0=CONFLICT"), QUIET)
    forced = next(cell for cell in report.cells if cell.column == "0.31.0")
    assert (forced.verdict, forced.known, forced.forced) == (Verdict.CONFLICT, False, True)
    assert forced in report.alerts


def test_two_runs_on_the_same_facts_give_the_same_report(toy: Catalog) -> None:
    first, second = (run.run(toy, run.Ask(patch="toy"), QUIET) for _ in range(2))
    assert first == second
    assert first.as_data() == second.as_data()


def test_no_listing_hides_a_release() -> None:
    listed = [
        index.Listed(file=f"vllm-{name}", url="u", sha256="00", yanked=False)
        for name in ("0.40.0.tar.gz", "0.41.0-cp312-abi3-manylinux_2_99_x86_64.whl", "0.42.0-py3-none-any.whl")
    ]
    assert {name: bool(file) for name, file in index.releases(listed).items()} == {
        "0.40.0": False,
        "0.41.0": True,
        "0.42.0": False,
    }


PROBE = """
import pathlib, sys
text = (pathlib.Path(sys.argv[1]) / "vllm/toy.py").read_text()
print("green: it says so" if "good" in text else "red: it does not")
sys.exit("good" not in text)
"""


@pytest.fixture
def probed(toy: Catalog) -> Catalog:
    """Return the toy's catalog with a probe that is green where the file says "good"."""
    (toy.root / "patches/toy/probe.py").write_text(PROBE, encoding="utf-8")
    return toy


def test_a_new_release_on_which_the_probe_is_green_has_it_in_other_words(probed: Catalog, served: Index) -> None:
    served.add("0.34.0", {TOY_PATH: b"# good\n"})
    served.add("0.35.0", {TOY_PATH: b"# bad\n"})
    found = verdicts(probed)
    assert found["0.34.0"] == (Verdict.MERGED_DIFFERENT, False)
    assert found["0.35.0"] == (Verdict.CONFLICT, False)


@pytest.fixture
def entry(probed: Catalog, edit: Callable[[str, str, str], None]) -> Catalog:
    """Return a catalog whose patch has no edition, and which says that vLLM has its change since 0.31.0."""
    path = probed.root / "patches/toy/patch.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text[: text.index("editions:")].replace("probe:", "upstream_since: 0.31.0\nprobe:"), encoding="utf-8"
    )
    (probed.root / "patches/toy/0.31.0.patch").unlink()
    edit("patches/toy/patch.yaml", '">=0.31.0"', '"<0.31.0"')
    loaded = catalogs.load(probed.root)
    return catalogs.Catalog(**vars(loaded) | {"releases": probed.releases})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({TOY_PATH: b"# good\n"}, (Verdict.MERGED, True)),
        ({TOY_PATH: b"# bad\n"}, (Verdict.WITHDRAWN, False)),
        ({"vllm/other.py": b""}, (Verdict.UNKNOWN, False)),
    ],
)
def test_an_entry_without_an_edition_is_looked_at_by_its_probe(
    entry: Catalog, served: Index, files: dict[str, bytes], expected: tuple[Verdict, bool]
) -> None:
    served.add("0.34.0", files)
    found = verdicts(entry)
    assert found["0.31.0"] == (Verdict.MERGED, True)
    assert found["0.34.0"] == expected


def test_no_probe_runs_beside_a_token(entry: Catalog, served: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    served.add("0.34.0", {TOY_PATH: b"# good\n"})
    monkeypatch.setenv("GH_TOKEN", "secret")
    assert verdicts(entry)["0.34.0"] == (Verdict.UNKNOWN, False)
    monkeypatch.delenv("GH_TOKEN")
    assert verdicts(entry)["0.34.0"] == (Verdict.MERGED, True)
    monkeypatch.setenv("GH_TOKEN", "secret")
    assert verdicts(entry)["0.34.0"] == (Verdict.MERGED, True), "what was seen without a token is remembered"


@pytest.mark.parametrize(
    "link",
    [
        '<a href="http://[::1/vllm-0.35.0-cp38-abi3-manylinux_2_28_x86_64.whl">x</a>',
        f'<a href="/files/vllm-{"9" * 5000}.0.tar.gz#sha256=00">x</a>',
        '<a href="/files/vllm-0.20.0-cp38-abi3-manylinux_2_28_x86_64.whl#sha256=../../../evil">x</a>',
    ],
)
def test_a_link_to_nothing_harms_no_release(toy: Catalog, served: Index, link: str) -> None:
    served.odd.append(link)
    assert list(verdicts(toy)) == ["0.31.0", "0.32.0"]


def test_a_new_release_whose_hash_is_none_is_unknown(toy: Catalog, served: Index) -> None:
    name = "vllm-0.35.0-cp38-abi3-manylinux_2_28_x86_64.whl"
    served.odd.append(f'<a href="/files/{name}#sha256=../../../evil">x</a>')
    assert verdicts(toy)["0.35.0"] == (Verdict.UNKNOWN, False)


def test_a_page_without_a_file_is_no_answer(toy: Catalog, served: Index) -> None:
    served.wheels.clear()
    assert set(verdicts(toy).values()) == {(Verdict.UNKNOWN, False)}


def test_an_index_that_goes_away_in_between_leaves_the_other_cells(toy: Catalog, served: Index) -> None:
    """All files of the new release must be read, to see where this one went; by then its wheel is gone."""
    served.add("0.34.0", {"vllm/other.py": b"# big\n" * 200_000, "vllm/rest.py": os.urandom(900_000)})
    assert [each.column.problem for each in columns.releases(toy, nothing, QUIET).subjects] == ["", "", ""]
    gone(served, "0.34.0")
    found = verdicts(toy)
    assert found["0.34.0"] == (Verdict.UNKNOWN, False)
    assert found["0.31.0"] == (Verdict.CLEAN, True)


def gone(served: Index, release: str) -> None:
    """Leave a wheel listed that is not there any more."""
    name = next(name for name in served.wheels if release in name)
    served.odd.append(f'<a href="/files/{name}#sha256={sha256(served.wheels.pop(name))}">x</a>')


def test_one_wheel_that_is_gone_takes_no_other_with_it(toy: Catalog, served: Index) -> None:
    served.add("0.34.0", {TOY_PATH: TOY_BEFORE})
    columns.releases(toy, nothing, QUIET)  # the directories are kept; the file would be read from the first wheel
    for folder in (toy.state / "wheels").glob("*/files"):
        shutil.rmtree(folder)
    gone(served, "0.31.0")
    subjects = {each.column.name: each for each in columns.releases(toy, nothing, QUIET).subjects}
    assert subjects["0.31.0"].column.problem
    assert subjects["0.34.0"].files == {TOY_PATH: TOY_BEFORE}


def test_damaged_caches_are_read_again(toy: Catalog) -> None:
    first = run.run(toy, run.Ask(), QUIET)
    for file in [*(toy.state / "drift").iterdir(), *(toy.state / "wheels").glob("*/directory.json")]:
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("toy", "tox").replace("true", "false").replace("clean", "clear"), encoding="utf-8")
    assert run.run(toy, run.Ask(), QUIET) == first


# git


@pytest.fixture
def upstream(tmp_path: Path) -> git.Repo:
    """Return a repository with tags v0.31.0 and v0.32.0, and three commits between of which the second breaks."""
    repo = git.Repo.init(tmp_path / "upstream", initial_branch="main")
    for setting in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        repo.git.config(setting, "true")

    def commit(subject: str, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            where = tmp_path / "upstream" / path
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_bytes(data)
        repo.git.add("--all")
        repo.git.commit("--quiet", "--message", subject)

    commit("first", {TOY_PATH: TOY_BEFORE, "vllm/envs.py": ENVS})
    repo.git.tag("v0.31.0")
    commit("something else", {"vllm/envs.py": ENVS + b"# more\n"})
    commit("a line above", {TOY_PATH: SHIFTED})
    commit("and one below", {TOY_PATH: SHIFTED + b"# end\n"})
    repo.git.tag("v0.32.0")
    return repo


@pytest.mark.parametrize("remote", [False, True])
def test_a_ref_of_git_is_a_column(toy: Catalog, upstream: git.Repo, *, remote: bool) -> None:
    folder = str(upstream.working_dir)
    where = f"file://{folder}" if remote else folder
    report = run.run(toy, run.Ask(patch="toy", ref="main", git=where), QUIET)
    assert [(cell.column, cell.verdict, cell.port) for cell in report.cells] == [("git:main", Verdict.OFFSET, "clean")]
    assert report.columns[0].identity == upstream.head.commit.hexsha
    older = run.run(toy, run.Ask(patch="toy", ref="v0.31.0", git=where), QUIET)
    assert [cell.verdict for cell in older.cells] == [Verdict.CLEAN]


def test_a_remote_gives_only_the_contents_that_are_needed(toy: Catalog, upstream: git.Repo) -> None:
    files = git_ref.at(f"file://{upstream.working_dir}", "main", state=toy.state)
    assert held(files.repository) == set()
    assert files.read([TOY_PATH, "vllm/absent.py"]) == {TOY_PATH: SHIFTED + b"# end\n"}
    assert held(files.repository) == {files.stamps()[TOY_PATH]}


def held(repository: git_ref.Repository) -> set[str]:
    """Return the file contents that a clone has; asking git for one would fetch it."""
    rows = repository.ask("cat-file", "--batch-all-objects", "--batch-check").decode().splitlines()
    return {row.split()[0] for row in rows if row.split()[1] == "blob"}


def test_a_repository_that_is_none(toy: Catalog, tmp_path: Path) -> None:
    with pytest.raises(errors.BadInput, match="neither the URL nor the folder of a git repository"):
        run.run(toy, run.Ask(ref="main", git=str(tmp_path)), QUIET)
    with pytest.raises(errors.Missing, match="cannot be fetched"):
        run.run(toy, run.Ask(ref="main", git=f"file://{tmp_path}/none"), QUIET)


def test_a_ref_that_is_none(toy: Catalog, upstream: git.Repo) -> None:
    with pytest.raises(errors.BadInput, match="has no v9"):
        run.run(toy, run.Ask(ref="v9", git=str(upstream.working_dir)), QUIET)


@pytest.mark.parametrize("remote", [False, True])
def test_bisect_names_release_and_commit(toy: Catalog, upstream: git.Repo, *, remote: bool) -> None:
    folder = str(upstream.working_dir)
    found = bisect.run(toy, "toy", repository=f"file://{folder}" if remote else folder, reporter=QUIET)
    assert [(each.edition, each.fits, each.broken, each.verdict) for each in found] == [
        ("0.31.0", "0.31.0", "0.32.0", Verdict.OFFSET)
    ]
    commit = found[0].commit
    assert commit is not None
    assert (commit.subject, commit.id) == ("a line above", upstream.commit("v0.32.0~1").hexsha)


@pytest.mark.parametrize("said", ["v0.31.0", "releases/v0.31.0", "v0.31.0rc2"])
def test_a_ref_that_is_named_like_a_release_counts_as_it(toy: Catalog, upstream: git.Repo, said: str) -> None:
    if said != "v0.31.0":
        upstream.git.branch(said, "v0.31.0^{commit}")
    subject = columns.ref(toy, str(upstream.working_dir), said, nothing, version="")
    assert (subject.version, subject.column.name) == ("0.31.0", f"git:{said}")
    assert columns.ref(toy, str(upstream.working_dir), said, nothing, version="0.30.0").version == "0.30.0"


def test_a_repository_of_somebody_else_runs_nothing(toy: Catalog, upstream: git.Repo, tmp_path: Path) -> None:
    """A clone without contents would fetch them, with whatever program its own settings name."""
    clone, ran = tmp_path / "clone", tmp_path / "ran"
    git.Repo.clone_from(f"file://{upstream.working_dir}", clone, no_checkout=True, multi_options=["--filter=blob:none"])
    for name, value in {
        "remote.origin.uploadpack": f"touch {ran}; git-upload-pack",
        "core.fsmonitor": f"touch {ran}",
        "core.sshCommand": f"touch {ran}",
    }.items():
        git.Repo(clone).git.config(name, value)
    with pytest.raises(errors.KilnError):
        run.run(toy, run.Ask(patch="toy", ref="main", git=str(clone)), QUIET)
    assert not ran.exists()


def test_a_ref_that_was_read_takes_no_history_away(toy: Catalog, upstream: git.Repo) -> None:
    where = f"file://{upstream.working_dir}"
    for ref in ("v0.32.0", "v0.31.0", "main"):
        git_ref.at(where, ref, state=toy.state)
    found = git_ref.between(where, "v0.31.0", "v0.32.0", [TOY_PATH], state=toy.state)
    assert [commit.subject for _, commit in found] == ["a line above", "and one below"]


def test_bisect_says_why_no_commit_is_named(toy: Catalog, upstream: git.Repo) -> None:
    upstream.git.tag("--force", "v0.32.0", "v0.31.0")
    (found,) = bisect.run(toy, "toy", repository=str(upstream.working_dir), reporter=QUIET)
    assert found.commit is None
    assert "none of the 0 commits between v0.31.0 and v0.32.0 breaks it" in found.why


def test_bisect_of_what_fits_everywhere(toy: Catalog, served: Index) -> None:
    served.add("0.32.0", {TOY_PATH: TOY_BEFORE})
    pins = toy.releases.releases
    same = pins["0.32.0"].model_copy(update={"wheel": served.add("0.32.0", {TOY_PATH: TOY_BEFORE})})
    releases = toy.releases.model_copy(update={"releases": pins | {"0.32.0": same}})
    found = bisect.run(catalogs.Catalog(**vars(toy) | {"releases": releases}), "toy", repository="", reporter=QUIET)
    assert [(each.fits, each.broken, each.commit) for each in found] == [("0.32.0", "", None)]


def test_bisect_without_the_tags(toy: Catalog, upstream: git.Repo) -> None:
    upstream.git.tag("--delete", "v0.32.0")
    with pytest.raises(errors.BadInput, match=r"has no refs/tags/v0\.32\.0"):
        bisect.run(toy, "toy", repository=str(upstream.working_dir), reporter=QUIET)


def test_what_a_release_takes_is_parsed_once(toy: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    run.run(toy, run.Ask(), QUIET)
    monkeypatch.setattr(names, "read", lambda _: pytest.fail("parsed again"))
    run.run(toy, run.Ask(), QUIET)
