"""A catalog of toy patches, its release's files at hand, and provers without torch; test_authoring_*.py build on it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import catalog, files, git, process
from kiln.authoring import drafts
from kiln.catalog import edit
from kiln.errors import Finding
from kiln.proof import prove, trees
from kiln.proof.prove import Proof, Ran
from kiln.report import Reporter
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kiln.authoring.gate import Prover
    from kiln.catalog import Catalog
    from kiln.proof.cases import Case

RELEASE = "0.31.0"
PATH = "vllm/twins.py"
QUIET = Reporter(quiet=True)
TWIN = b"def NAME():\n    total = 0\n    for n in range(3):\n        total += n\n    return total\n\n\n"
BEFORE = TWIN.replace(b"NAME", b"first") + TWIN.replace(b"NAME", b"second") + b"END = True\n"
FIRST, SECOND = (
    BEFORE.replace(b"def %b():\n    total = 0" % name, b"def %b():\n    total = 1" % name)
    for name in (b"first", b"second")
)
BOTH = FIRST.replace(b"def second():\n    total = 0", b"def second():\n    total = 1")
SOURCES = {
    "vllm/__init__.py": b"",
    PATH: BEFORE,
    "vllm/sub/other.py": b"".join(b"# line %d\n" % n for n in range(1, 31)),
    "vllm/config.json": b"{}\n",
}
PROBE = """\
import runpy, sys
at = runpy.run_path(sys.argv[1] + "/vllm/twins.py")
print("green: second is 4" if at["second"]() == 4 else "red: second is not 4")
sys.exit(at["second"]() != 4)
"""


def hold(root: Path, contents: Mapping[str, bytes] = SOURCES, release: str = RELEASE) -> None:
    """Put a release's files where its wheel would have been read to."""
    loaded = catalog.load(root)
    pin = loaded.releases.releases[release].wheel
    tree = loaded.state / "sources" / pin.sha256
    git.write(tree, contents)
    files.write(trees._sum_of(tree), trees._digest(tree))
    trees._intact.cache_clear()
    for path, data in contents.items():
        wheel.keep(pin, path, data, cache=loaded.state / "wheels")


def load(toy_catalog: Path) -> Catalog:
    """Return the toy's catalog with its patch made for `second` of the twins, and proven by its probe."""
    folder = toy_catalog / "patches/toy"
    (folder / "probe.py").write_text(PROBE)
    (folder / "tests").mkdir()
    text = (folder / "patch.yaml").read_text()
    (folder / "patch.yaml").write_text(text.partition("editions:")[0])
    (folder / "0.31.0.patch").unlink()
    hold(toy_catalog)
    give(toy_catalog, "toy", git.diff({PATH: BEFORE}, {PATH: SECOND}), BEFORE)
    return catalog.load(toy_catalog)


def give(root: Path, patch_id: str, data: bytes, *before: bytes, of: Mapping[str, bytes] | None = None) -> None:
    """Put an edition, of the twins or of other files, into a patch, as a person would."""
    described = root / "patches" / patch_id / "patch.yaml"
    edition = drafts.record(patch_id, data, of or (dict.fromkeys([PATH], before[0]) if before else {}))
    (described.parent / f"{RELEASE}.patch").write_bytes(data)
    described.write_text(edit.with_edition(described.read_text(), RELEASE, edition))


def add(root: Path, patch_id: str, data: bytes, *before: bytes, of: Mapping[str, bytes] | None = None) -> Catalog:
    """Add a patch behind the others, on the twins as `before`, or on other files."""
    folder = root / "patches" / patch_id
    folder.mkdir()
    toy = (root / "patches/toy/patch.yaml").read_text().partition("editions:")[0]
    (folder / "patch.yaml").write_text(toy.replace("id: toy", f"id: {patch_id}"))
    (folder / "probe.py").write_text(PROBE)
    (folder / "tests").mkdir()
    give(root, patch_id, data, *before, of=of)
    order = root / "patches/series.yaml"
    order.write_text(edit.with_last(order.read_text(), patch_id))
    return catalog.load(root)


def probed(catalog: Catalog, cases: Sequence[Case], _: Reporter) -> tuple[Proof, ...]:
    """Run each probe for real, without the patch and with it; tests are taken to be right."""
    return tuple(prove.judge(case, _ran(catalog, case)) for case in cases)


def found(problem: str) -> Prover:
    """Return a prover that finds this, whatever it is shown."""
    finding = Finding(where="toy", problem=problem)
    return lambda _, cases, __: tuple(
        Proof(case=case, rules=0, unready=0, tests=0, skipped=(), findings=(finding,), seconds=0.0) for case in cases
    )


def snapshot(root: Path) -> dict[str, bytes]:
    """Return everything below patches/."""
    paths = (path for path in (root / "patches").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def _ran(catalog: Catalog, case: Case) -> dict[str, Ran]:
    ended = functools.partial(Ran, seconds=0.0)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = dict(prove._jobs(catalog, case, Path(scratch)))
        said = {
            kind: process.run(process.python("-B", *job["argv"]))
            for kind, job in jobs.items()
            if kind.startswith("probe ")
        }
    right = {kind: ended(code=each.code, output=each.stdout + each.stderr, results={}) for kind, each in said.items()}
    if case.kind == "edition":
        right["tests released"] = ended(code=0, output="", results={"xfailed": ["a"]})
        right["tests patched"] = ended(code=0, output="", results={"passed": ["a"]})
    return {f"{case.name} {kind}": one for kind, one in right.items()}
