"""Runs each patch's probe and tests on its releases' real files, without the patch and with it, and judges both."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln import files, process
from kiln.errors import Finding
from kiln.proof import kernels, trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kiln.catalog import Catalog
    from kiln.proof.cases import Case
    from kiln.report import Reporter

_WORKER, _IMPORTS = (Path(__file__).with_name(name) for name in ("worker.py", "imports.py"))
_PARALLEL = 2
_TIMEOUT_S = 600
_TAIL_LINES = 30
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "TRITON_INTERPRET": "1",  # kernels run on the CPU, and vLLM takes Triton for present
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_NOT_RUN = "not run: "
_KINDS = ("probe released", "tests released", "probe patched", "tests patched")
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_PYTEST = (
    *("pytest", "-q", "-p", "no:cacheprovider", "-p", "no:warnings"),
    *("--import-mode=importlib", "--strict-markers", "-c", "/dev/null"),
)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a case showed: `rules` fail without the patch, `tests` pass with it, `skipped` says what did not run.

    `unready` of the rules cannot even begin without the patch, because a file that it adds is not there.
    """

    case: Case
    rules: int
    unready: int
    tests: int
    skipped: tuple[str, ...]
    findings: tuple[Finding, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How one program ended; `results` are the outcomes of its tests, by kind, where it was pytest."""

    code: int
    output: str
    seconds: float
    results: Mapping[str, Sequence[str]]

    @property
    def end(self) -> str:
        return f", and took longer than {_TIMEOUT_S} s" if self.code == -signal.SIGALRM else ""

    @property
    def tail(self) -> str:
        return "\n".join(self.output.rstrip().splitlines()[-_TAIL_LINES:])


_NOTHING = Ran(code=0, output="", seconds=0.0, results={})


def run(catalog: Catalog, cases: Sequence[Case], reporter: Reporter) -> tuple[Proof, ...]:
    """Prove the cases, two programs at a time.

    Raises Missing where torch, Triton or a release's wheel cannot be had, NotApplied where an edition does not fit.
    """
    python = kernels.ensure(catalog, reporter)
    home = catalog.state / "proof"
    with files.locked(home), tempfile.TemporaryDirectory(dir=home.parent, prefix=".proof.") as name:
        with reporter.step("the releases' files, without each patch and with it"):
            jobs = {f"{case.name} {kind}": job for case in cases for kind, job in _jobs(catalog, case, Path(name))}
        with reporter.step(f"probes and tests of {len(cases)} editions") as detail:
            ran = dict(_run(python, jobs, Path(name), detail))
    return tuple(judge(case, ran) for case in cases)


def _jobs(catalog: Catalog, case: Case, scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make the trees of a case and yield the programs to run on them, by kind."""
    if case.kind == "series":
        yield from _import_jobs(catalog, case, scratch)
        return
    folder = catalog.root / "patches" / case.patch
    for state, patches in _states(case).items():
        tree = trees.patched(catalog, case.release, patches, scratch / f"{case.patch}-{case.release}-{state}")
        at = {"path": [str(tree)], "cwd": str(scratch)}
        yield f"probe {state}", at | {"argv": [str(folder / "probe.py"), str(tree)], "env": {}}
        # the tests of an edition may look at how it is done, not only at what it does
        if (folder / "tests").is_dir() and (case.kind == "edition" or not catalog.patches[case.patch].editions):
            argv = [*_PYTEST, f"--rootdir={folder.parent}", str(folder / "tests")]
            results = scratch / f"{case.patch}-{case.release}-{state}.json"
            env = {"KILN_TREE": str(tree), "KILN_RELEASE": case.release, "KILN_STATE": state}
            yield f"tests {state}", at | {"argv": argv, "env": env | {"KILN_RESULTS": str(results)}}


def _states(case: Case) -> dict[str, tuple[str, ...]]:
    """Return the patches that are applied where the probe must be red, and where it must be green."""
    if case.kind == "edition":
        return {"released": case.before, "patched": (*case.before, case.patch)}
    return {"released" if case.kind == "unported" else "patched": ()}


def _import_jobs(catalog: Catalog, case: Case, scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Apply a whole series and yield the program that imports what it changed."""
    tree = trees.patched(catalog, case.release, case.before, scratch / f"{case.name}".replace(" ", "-"))
    editions = (catalog.patches[patch].editions[case.release] for patch in case.before)
    left = {path: hashes.post for edition in editions for path, hashes in edition.files.items()}
    files = (path for path, post in left.items() if post and path.endswith(".py"))
    modules = sorted(path.removesuffix(".py").replace("/", ".") for path in files)
    argv = [str(_IMPORTS), str(tree), str(trees.released(catalog, case.release)), *modules]
    yield "probe patched", {"path": [], "cwd": str(scratch), "argv": argv, "env": {}}


def _run(
    python: Path, jobs: Mapping[str, dict[str, Any]], scratch: Path, detail: Callable[[str], None]
) -> Iterator[tuple[str, Ran]]:
    work = {"parallel": _PARALLEL, "seconds": _TIMEOUT_S, "jobs": [{"name": name} | job for name, job in jobs.items()]}
    file = files.write(scratch / "jobs.json", json.dumps(work))
    argv = (str(python), "-P", str(_WORKER), str(file))
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    lines = process.show(argv, env=inherited | _ENVIRONMENT, line=lambda text: detail(_name(text)))
    for line in filter(_is_record, lines.splitlines()):
        said = json.loads(line)
        results = Path(jobs[said["name"]]["env"].get("KILN_RESULTS", scratch / "none"))
        found = json.loads(results.read_bytes()) if results.is_file() else {}
        yield said["name"], Ran(code=said["code"], output=said["output"], seconds=said["seconds"], results=found)


def _name(line: str) -> str:
    return json.loads(line)["name"] if _is_record(line) else ""


def _is_record(line: str) -> bool:
    return line.startswith('{"name": ')


def judge(case: Case, ran: Mapping[str, Ran]) -> Proof:
    """Compare how the programs of a case ended, by `case.name` and kind, with what they must show."""
    mine = {kind: ran[name] for kind in _KINDS if (name := f"{case.name} {kind}") in ran}
    released, patched = (mine.get(f"tests {state}", _NOTHING) for state in ("released", "patched"))
    return Proof(
        case=case,
        rules=len(released.results.get("xfailed", ())),
        unready=len(released.results.get("unready", ())),
        tests=len(patched.results.get("passed", ())),
        skipped=(*patched.results.get("skipped", ()), *_not_run(mine.get("probe patched", _NOTHING))),
        findings=tuple(_findings(case, mine)),
        seconds=round(sum(each.seconds for each in mine.values()), 1),
    )


def _not_run(ran: Ran) -> Iterator[str]:
    return (line.removeprefix(_NOT_RUN) for line in ran.output.splitlines() if line.startswith(_NOT_RUN))


def _findings(case: Case, mine: Mapping[str, Ran]) -> Iterator[Finding]:
    where = f"{case.patch} on {case.release}" if case.kind == "series" else f"patches/{case.patch} on {case.release}"
    if case.kind in {"edition", "unported"}:
        yield from _probe(where, mine["probe released"], red=True)
    if case.kind == "unported":
        return
    if case.kind == "edition":
        if "tests released" not in mine:
            yield Finding(where=where, problem="has no tests", hint=f"write patches/{case.patch}/tests/test_*.py")
            return
        released = mine["tests released"]
        if released.code or not released.results.get("xfailed"):
            problem = "without the patch, a test that is marked as a rule passes, or there is none"
            yield Finding(where=where, problem=f"{problem}:\n{released.tail}", hint="make it fail without the patch")
    yield from _probe(where, mine["probe patched"], red=False)
    if "tests patched" in mine:
        yield from _passed(where, mine["tests patched"], mine.get("tests released", _NOTHING))


def _passed(where: str, patched: Ran, released: Ran) -> Iterator[Finding]:
    """Compare what the tests did with the patch with the rules that failed without it."""
    hint = "repair the edition or the test"
    passed = patched.results.get("passed", ())
    if patched.code:
        yield Finding(where=where, problem=f"with the patch, tests fail{patched.end}:\n{patched.tail}", hint=hint)
    elif not passed:
        yield Finding(where=where, problem="with the patch, no test passes", hint=hint)
    else:
        skipped = {text.partition(": Skipped")[0] for text in patched.results.get("skipped", ())}
        lost = sorted(set(released.results.get("xfailed", ())) - {*passed, *skipped})
        for test in lost:
            yield Finding(where=where, problem=f"fails without the patch, and is gone with it: {test}", hint=hint)


_STATES = {True: "without the patch", False: "with the patch, or on the release that has it,"}


def _probe(where: str, ran: Ran, *, red: bool) -> Iterator[Finding]:
    """Compare how a probe ended with what it must say: exit 1 and what is wrong, or exit 0 and what it saw."""
    code, word = (1, "red: ") if red else (0, "green: ")
    if ran.code != code or not any(line.startswith(word) for line in ran.output.splitlines()):
        problem = (
            f"{_STATES[red]} its probe is not {word.removesuffix(': ')}: exit code {ran.code}{ran.end}\n{ran.tail}"
        )
        yield Finding(where=where, problem=problem, hint="repair the edition or the probe")
