"""Drift reports to show: the catalog's own patches with a made-up new release, a small one, and one that attacks."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from kiln import catalog
from kiln.drift.records import Cell, Column, FileVerdict, RecipeFact, Report, Verdict
from kiln.plan import covers

if TYPE_CHECKING:
    from kiln.catalog import records

ROOT = Path(__file__).resolve().parents[2]
NEW = "0.34.0"
BROKEN = "mxfp8-moe-gfx942"
HOSTILE = (
    '</script><img src=x onerror="window.hit=1">\'`--><!-- kiln-drift: other@1 -->\n<!-- kiln-drift: other@1 -->\n'
    "```\u202egnp\x1b[31m\x00@all #1 | **b**"
)


def column(name: str, **changes: Any) -> Column:
    return replace(Column(name=name, kind="release", identity="ab" * 32, in_catalog=True), **changes)


def cell(patch: str = "toy", name: str = "0.31.0", verdict: Verdict = Verdict.CLEAN, **changes: Any) -> Cell:
    made = Cell(patch=patch, column=name, verdict=verdict, known=True, says=f"{verdict.value.lower()} here")
    return replace(made, **changes)


def fact(name: str = "--flag", at: str = "0.31.0", **changes: Any) -> RecipeFact:
    made = RecipeFact(
        model="MiniMaxAI/MiniMax-M3",
        column=at,
        kind="flag",
        name=name,
        problem="unknown",
        says=f"{name} is not an argument of this release",
        origin=("variants.mxfp8.extra_args",),
    )
    return replace(made, **changes)


def report(*cells: Cell, recipes: tuple[RecipeFact, ...] = (), columns: tuple[Column, ...] = ()) -> Report:
    names = dict.fromkeys([*(each.column for each in cells), *(each.column for each in recipes)])
    patches = dict.fromkeys(each.patch for each in cells)
    return Report(
        columns=columns or tuple(column(name) for name in names),
        titles=tuple((patch, f"What {patch} is for") for patch in patches),
        cells=cells,
        recipes=recipes,
    )


def hostile(text: str = HOSTILE) -> Report:
    """Return a report of which every text attacks the page, the tracker or the terminal."""
    file = FileVerdict(
        path=text,
        verdict=Verdict.CONFLICT,
        hunk=3,
        expected=text,
        found=f"{text}!",
        hint=text,
        candidates=(text,),
    )
    bad = cell(
        "evil",
        "0.31.0",
        Verdict.CONFLICT,
        known=False,
        says=text,
        next=f"./inv {text}",
        edition=text,
        first=text,
        files=(file,),
        diff=f"--- a/{text}\n+++ b/x\n@@ -1 +1 @@\n-{text}\n+</pre></script><script>window.hit=2</script>\r\n",
    )
    strange = fact(text, model=text, says=text, origin=(text,), near=text)
    made = report(bad, recipes=(strange,), columns=(column("0.31.0"), column(text, problem=text, in_catalog=False)))
    return replace(made, titles=(("evil", text),))


def realistic() -> Report:
    """Return a report on the catalog's own patches and releases, and on one release that does not exist yet."""
    loaded = catalog.load(ROOT)
    names = (*loaded.releases.releases, NEW)
    columns = tuple(
        column(name, in_catalog=name != NEW, identity=hashlib.sha256(name.encode()).hexdigest()) for name in names
    )
    cells = tuple(_cell(loaded.patches[patch], name) for patch in loaded.order for name in names)
    titles = tuple((patch, loaded.patches[patch].title) for patch in loaded.order)
    return Report(columns=columns, titles=titles, cells=cells, recipes=_recipes(names))


def _cell(patch: records.Patch, name: str) -> Cell:
    since, withdrawn = patch.upstream_since, patch.withdrawn_in
    if name == NEW and patch.id in _NEWS:
        return _new(patch)
    if edition := _nearest(patch, name):
        diff = (ROOT / f"patches/{patch.id}/{edition}.patch").read_text(encoding="utf-8")
        if name in (edition, NEW):
            return cell(patch.id, name, says="its edition applies, every hash as recorded", edition=edition, diff=diff)
    if withdrawn and Version(name) >= Version(withdrawn):
        says = f"upstream had it since {since} and took it back in {withdrawn}"
        return cell(patch.id, name, Verdict.WITHDRAWN, first=withdrawn, says=says)
    if since and Version(name) >= Version(since):
        return cell(patch.id, name, Verdict.MERGED, first=since, says=f"vLLM has it since {since}, line by line")
    if not covers(patch.applies, name):
        return cell(patch.id, name, Verdict.NOT_NEEDED, says=f"applies to vLLM {patch.applies.releases} only")
    says = f"the edition for {edition} does not fit, and its change cannot be merged (listed as unported)"
    more = {"edition": edition, "diff": diff, "port": "conflict", "files": _CONFLICT, "next": _port(patch.id, name)}
    return cell(patch.id, name, Verdict.CONFLICT, says=says, **more)


def _nearest(patch: records.Patch, name: str) -> str:
    below = [edition for edition in patch.editions if Version(edition) <= Version(name)]
    return below[-1] if below and covers(patch.applies, name) else ""


def _port(patch: str, name: str) -> str:
    return f"./inv patch.port {patch} --to {name}"


_ORACLE = "vllm/model_executor/layers/fused_moe/oracle/mxfp8.py"
_CONFLICT = (
    FileVerdict(
        path=_ORACLE,
        verdict=Verdict.CONFLICT,
        hunk=2,
        expected="line 118: def select_mxfp8_moe_backend(config: FusedMoEConfig) -> Mxfp8MoEBackend:",
        found="line 118: def select_mxfp8_moe_backend(\n    config: FusedMoEConfig, layer: str\n) -> Mxfp8MoEBackend:",
        hint="the signature has a new argument",
    ),
    FileVerdict(path="vllm/model_executor/layers/fused_moe/experts/mxfp8_native_moe.py", verdict=Verdict.CLEAN),
)
_MOVED = (
    FileVerdict(
        path="vllm/model_executor/models/minimax_m3.py",
        verdict=Verdict.MOVED,
        expected="vllm/model_executor/models/minimax_m3.py",
        found="no such file in this release",
        candidates=("vllm/models/minimax_m3/amd/model.py", "vllm/models/minimax_m3/common/indexer.py"),
    ),
)
_OFFSET = (
    FileVerdict(
        path="vllm/reasoning/minimax_m3_reasoning_parser.py",
        verdict=Verdict.OFFSET,
        hunk=1,
        expected="line 143: def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:",
        found="line 171: def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:",
        hint="the same lines stand 28 lines further down",
    ),
)
_NEWS = {
    BROKEN: (Verdict.CONFLICT, "conflict", _CONFLICT),
    "gfx942-index-topk-pin": (Verdict.MOVED, "", _MOVED),
    "m3-reasoning-prompt-marker": (Verdict.OFFSET, "clean", _OFFSET),
    "blockfp8-moe-gfx942": (Verdict.AMBIGUOUS, "conflict", ()),
    "m3-stream-first-delta": (Verdict.MERGED, "", ()),
}
_SAYS = {
    Verdict.CONFLICT: "the edition for 0.33.0 does not fit, and its change cannot be merged",
    Verdict.MOVED: "the file that the edition for 0.33.0 changes is not in this release",
    Verdict.OFFSET: "the edition for 0.33.0 does not fit; its change merges, which its probe has not proven",
    Verdict.AMBIGUOUS: "hunk 3 of the edition for 0.24.0 fits in two places",
    Verdict.MERGED: "every line of the edition for 0.33.0 is in the release's own files",
}


def _new(patch: records.Patch) -> Cell:
    verdict, port, files = _NEWS[patch.id]
    edition = _nearest(patch, NEW)
    diff = (ROOT / f"patches/{patch.id}/{edition}.patch").read_text(encoding="utf-8")
    more = {"known": False, "files": files, "edition": edition, "diff": diff, "says": _SAYS[verdict], "port": port}
    if verdict is Verdict.MERGED:
        return cell(patch.id, NEW, verdict, **more, next=f"set upstream_since: {NEW} in patches/{patch.id}/patch.yaml")
    return cell(patch.id, NEW, verdict, **more, next=_port(patch.id, NEW))


def _recipes(names: tuple[str, ...]) -> tuple[RecipeFact, ...]:
    origin = ("variants.mxfp8.hardware_overrides.mi300x.extra_args",)
    default = {"problem": "default", "known": True, "says": "on by default: the flag changes nothing", "origin": origin}
    environment = ("variants.mxfp8.hardware_overrides.mi300x.extra_env",)
    return (
        *(fact("--async-scheduling", name, **default) for name in names if Version(name) >= Version("0.27.0")),
        fact(
            "VLLM_ROCM_USE_AITER_MHA",
            NEW,
            kind="environment",
            problem="renamed",
            near="VLLM_ROCM_AITER_MHA",
            says="vllm/envs.py does not read it any more",
            origin=environment,
        ),
    )
