"""Prints what the patch tasks found: a line for each patch and file, the findings, or JSON and nothing else."""

from __future__ import annotations

import functools
import itertools
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from kiln import errors, report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kiln.catalog import records
    from kiln.errors import Finding
    from kiln.explain import Explanation
    from kiln.patching.outcomes import FileReport
    from kiln.trees import Answer
    from kiln.trees.pack import Pack

_COLUMN = 16
_WIDTH = 96


def show_answer(answer: Answer, *, json: bool) -> None:
    """Print what the engine said of a tree; raises NotApplied when it ended with anything but 0."""
    told = answer.report
    if json:
        print(answer.text)
    else:
        for patch in told.patches:
            print(f"{patch.outcome.value:<{_COLUMN}} {patch.id}{f': {patch.hint}' if patch.hint else ''}")
            _print_files(patch.files)
        _print_files(told.files)
    summary = f"{answer.distribution} {answer.version} in {answer.tree}: {told.outcome.value}"
    if answer.exit_code:
        raise _failure(answer.exit_code)(summary, hint=told.hint)
    if not json:
        print(f"{summary}{f'; {told.hint}' if told.hint else ''}")


def show_explanation(made: Explanation, *, json: bool) -> None:
    """Print why a patch exists, where it is needed, and what carries it."""
    if json:
        print(report.as_json(made.as_data()))
        return
    patch, applies, upstream = made.patch, made.patch.applies, made.patch.upstream
    every = {"models": applies.models, "variants": applies.variants, "arches": applies.arches}
    rows = [
        ("patch", patch.id),
        ("title", patch.title),
        ("why", patch.reason.strip()),
        ("lost without it", patch.lost_without.strip()),
        *((f"needed on {name}", ", ".join(names) or "every one") for name, names in every.items()),
        ("needed on releases", applies.releases),
        ("editions", ", ".join(patch.editions) or "none"),
        *_missing(made),
        ("requires", ", ".join(patch.requires) or "no other patch"),
        ("conflicts with", ", ".join(patch.conflicts) or "no other patch"),
        *(("needs in the image", f"{name} {versions}") for name, versions in patch.preconditions.items()),
        ("upstream", _upstream(patch)),
        *(("link", link) for link in upstream.links),
        ("drop when", patch.drop_when.strip()),
        *_probe(patch),
        ("used by", "\n".join(_by_release(made.targets)) or "no target"),
        *(("refused", line) for line in _by_release(made.refused)),
        ("evidence", "\n".join(_evidence_lines(made)) or "none under build/: ./inv smoke makes it"),
    ]
    cells = ((what, line) for what, value in rows for line in _under(value))
    print(report.table(("what", "value"), list(_once(cells))))


def _missing(made: Explanation) -> Iterator[tuple[str, str]]:
    if made.missing:
        yield "no edition for", f"{', '.join(made.missing)}: targets that need it there are refused"


def _upstream(patch: records.Patch) -> str:
    since, withdrawn = patch.upstream_since, patch.withdrawn_in
    parts = (patch.upstream.status, since and f"in vLLM since {since}", withdrawn and f"taken back in {withdrawn}")
    return ", ".join(part for part in parts if part)


def _probe(patch: records.Patch) -> Iterator[tuple[str, str]]:
    if patch.probe:
        yield "probe", f"patches/{patch.id}/probe.py, needs {patch.probe.needs}: {patch.probe.shows.strip()}"


def show_findings(findings: Iterable[Finding], clean: str, *, json: bool) -> None:
    """Print every finding; raises Findings when there is one, else says `clean`."""
    rows = tuple(findings)
    if json:
        print(report.as_json([asdict(row) for row in rows]))
    else:
        for row in rows:
            print(f"{row.where}: {row.problem}{f'{chr(10)}  next: {row.hint}' if row.hint else ''}")
    if rows:
        raise errors.Findings(f"{len(rows)} {'finding' if len(rows) == 1 else 'findings'}")
    if not json:
        print(clean)


def show_pack(made: Pack, *, json: bool) -> None:
    """Print what was written, and how a node uses it."""
    if json:
        print(report.as_json(asdict(made)))
        return
    folder = made.folder
    print(f"wrote {folder}/kiln-patch.pyz (sha256 {made.sha256}) and {folder}/series for vLLM {made.release}")
    print(f"  series  {', '.join(made.patches) or 'empty: no patch is needed'}")
    print(f"  use     python3 {folder}/kiln-patch.pyz apply --series {folder}/series && exec vllm serve ...")


def _print_files(files: Iterable[FileReport]) -> None:
    for file in files:
        print(f"{file.outcome.value:<{_COLUMN}}   {file.path}{f', hunk {file.hunk}' if file.hunk else ''}")
        if not file.outcome.done:
            for label, text in (("expected", file.expected), ("found", file.found), ("next", file.hint)):
                if text:
                    print(f"{'':<{_COLUMN}}     {label + ':':<9} {text}")


def _failure(code: int) -> type[errors.KilnError]:
    return errors.BadInput if code == errors.BadInput.exit_code else errors.NotApplied


def _by_release(slugs: Iterable[str]) -> Iterator[str]:
    """Yield the targets of one variant and arch in a line."""
    for target, group in itertools.groupby((slug.rpartition("-") for slug in slugs), key=lambda parts: parts[0]):
        yield f"{target} with {', '.join(release for _, _, release in group)}"


def _evidence_lines(made: Explanation) -> Iterator[str]:
    for item in made.evidence:
        verdict = "passed" if item.passed else "FAILED"
        about = "" if item.current else ", of another edition"
        yield f"{item.path}: {verdict}{about}, {item.image_digest}"


def _under(value: str) -> list[str]:
    """Return a text as the lines of its cell."""
    wrap = functools.partial(textwrap.wrap, width=_WIDTH, break_long_words=False, break_on_hyphens=False)
    return [line for text in value.splitlines() for line in wrap(text)]


def _once(cells: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the cells with a name shown only where it changes."""
    shown = ""
    for what, value in cells:
        yield ("" if what == shown and what != "link" else what), value
        shown = what
