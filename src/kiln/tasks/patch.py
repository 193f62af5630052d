"""Tasks over patches: apply, verify and revert them on an installed vLLM, explain and check them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiln.tasks.command import command
from kiln.tasks.target import TARGET

if TYPE_CHECKING:
    from invoke.context import Context

    from kiln.trees import Verb

_JSON = {"json": TARGET["json"]}
_ENGINE = TARGET | {
    "root": "the tree: a venv, or its site-packages",
    "container": "the tree: a running container, by name or id",
    "image": "the tree: an image, for verify and status; nothing in it is changed",
    "series": "folder with series.json; default: the series of --variant and --arch",
    "release": "vLLM release; default: the one that the tree holds",
}


def _engine(verb: Verb, sentence: str) -> Any:
    """Return the task for one verb of the patch engine."""

    def body(
        _: Context,
        *,
        root: str = "",
        container: str = "",
        image: str = "",
        series: str = "",
        variant: str = "",
        arch: str = "",
        release: str = "",
        model: str = "",
        json: bool = False,
    ) -> None:
        from kiln import catalog, trees
        from kiln.tasks.show_patch import show_answer

        where = trees.Where(root=root, container=container, image=image)
        wanted = trees.Wanted(series=series, variant=variant, arch=arch, release=release, model=model)
        show_answer(trees.run(verb, where, wanted, catalog.load(catalog.find_root())), json=json)

    body.__name__, body.__doc__ = verb, sentence
    return command(help=_ENGINE)(body)


apply = _engine("apply", "Apply a series to an installed vLLM: all files of all patches, or none.")
verify = _engine("verify", "Check an installed vLLM by content hash, RECORD and bytecode too; writes nothing.")
revert = _engine("revert", "Take the applied series out again: every file as the wheel installed it.")
status = _engine("status", "Say what each patch and file of an installed vLLM is; writes nothing, exit code 0.")


@command(help={"id_": "id of the patch, the name of its folder in patches/; --id may be left out"} | _JSON)
def explain(_: Context, *, id_: str = "", json: bool = False) -> None:
    """Say why a patch exists, where it is needed, what is lost without it, and what evidence carries it."""
    from kiln import catalog
    from kiln import explain as explaining
    from kiln.tasks.show_patch import show_explanation

    show_explanation(explaining.make(catalog.load(catalog.find_root()), id_), json=json)


@command(help=_JSON)
def lint(_: Context, *, json: bool = False) -> None:
    """Check every patch, and make every edition again from the release's real files."""
    from kiln import catalog
    from kiln import lint as linting
    from kiln.tasks.show_patch import show_findings

    loaded = catalog.load(catalog.find_root())
    clean = f"nothing found: {len(loaded.patches)} patches, every edition as git makes it from the release's files"
    show_findings(linting.patches(loaded), clean, json=json)


@command(help={"id_": "only this patch; --id may be left out", "release": "only editions for this release"} | _JSON)
def prove(_: Context, *, id_: str = "", release: str = "", json: bool = False) -> None:
    """Run each patch's probe and tests on the releases' real files, with and without it; needs no GPU."""
    from kiln import catalog
    from kiln.proof import cases
    from kiln.proof import prove as proving
    from kiln.report import Reporter
    from kiln.tasks.show_proof import show_proofs

    loaded = catalog.load(catalog.find_root())
    chosen = cases.plan(loaded, ids={id_} - {""}, releases={release} - {""})
    show_proofs(proving.run(loaded, chosen, Reporter()), json=json)


_RELEASE = {"release": "vLLM release; default: the catalog's default release"}


@command(
    help={
        "id_": "id of the new patch, the name of its folder in patches/; --id may be left out",
        "from_": "a unified diff: a pull request's .diff or .patch, a mail, or diff -u of an installed vLLM",
        "title": "its title; default: the subject, where the diff is a mail",
        "dry_run": "only judge it; nothing is written",
    }
    | _RELEASE
    | _JSON
)
def new(
    _: Context,
    *,
    id_: str = "",
    from_: str = "",
    release: str = "",
    title: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Take somebody's diff in as a new patch, if all of it fits the release exactly; else say what does not."""
    from pathlib import Path

    from kiln import catalog
    from kiln.authoring import intake
    from kiln.report import Reporter
    from kiln.tasks.show_authoring import show_intake

    loaded = catalog.load(catalog.find_root())
    release = release or loaded.releases.default_release
    told = intake.new(loaded, id_, Path(from_), release, reporter=Reporter(), title=title, dry_run=dry_run)
    show_intake(told, id_, from_, dry_run=dry_run, json=json)


@command(
    help={
        "id_": "id of the patch; --id may be left out",
        "discard": "throw away what is in its worktree and was not exported",
    }
    | _RELEASE
    | _JSON
)
def edit(_: Context, *, id_: str = "", release: str = "", discard: bool = False, json: bool = False) -> None:
    """Open a git worktree at the release's real files, one commit for each patch of the series, to edit a patch in."""
    from kiln import catalog
    from kiln.authoring import worktree
    from kiln.report import Reporter
    from kiln.tasks.show_authoring import show_worktree

    loaded = catalog.load(catalog.find_root())
    release = release or loaded.releases.default_release
    folder = worktree.open(loaded, id_, release, reporter=Reporter(), discard=discard)
    show_worktree(folder, id_, release, json=json)


@command(
    help={
        "id_": "id of the patch; --id may be left out; with --check: only this patch",
        "release": "vLLM release; default: the catalog's default release; with --check: only this release",
        "check": "make every stored edition again instead, and find each that is not the same byte for byte",
        "dry_run": "prove it, and write nothing",
        "files": "also other files than the edition had, and deletions",
    }
    | _JSON
)
def export(
    _: Context,
    *,
    id_: str = "",
    release: str = "",
    check: bool = False,
    dry_run: bool = False,
    files: bool = False,
    json: bool = False,
) -> None:
    """Write the edition that a worktree holds, if it fits, is canonical, and is proven by its probe and tests."""
    from kiln import catalog
    from kiln.authoring import export as exporting
    from kiln.report import Reporter
    from kiln.tasks.show_authoring import show_export
    from kiln.tasks.show_patch import show_findings

    loaded = catalog.load(catalog.find_root())
    if check:
        findings = exporting.check(loaded, {id_} - {""}, {release} - {""})
        show_findings(findings, "every edition is what export makes of it, byte for byte", json=json)
        return
    release = release or loaded.releases.default_release
    told = exporting.export(loaded, id_, release, reporter=Reporter(), dry_run=dry_run, files=files)
    show_export(told, dry_run=dry_run, json=json)


@command(
    help={
        "id_": "the patch; --id may be left out",
        "to": "release that gets an edition",
        "from_release": "release whose edition is ported; default: the nearest below, else above",
        "git": "upstream's repository, a folder or URL: names the commits behind a conflict",
        "dry_run": "merge and prove, write nothing and open no worktree",
    }
    | _JSON
)
def port(
    _: Context,
    *,
    id_: str = "",
    to: str = "",
    from_release: str = "",
    git: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Merge a patch's nearest edition into another release; written only if its probe and tests pass."""
    from kiln import catalog
    from kiln.port import run
    from kiln.report import Reporter
    from kiln.tasks.show_port import show_port

    wanted = run.Wanted(patch=id_, to=to, origin=from_release, git=git, dry_run=dry_run)
    show_port(run.port(catalog.load(catalog.find_root()), wanted, Reporter()), json=json)


@command(help=TARGET | {"out": "folder that gets kiln-patch.pyz and series/"})
def pack(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    out: str = "",
    json: bool = False,
) -> None:
    """Write the patch engine and a target's series into a folder, for a node or pod to apply at start."""
    from kiln import catalog, trees
    from kiln import plan as planning
    from kiln.tasks.show_patch import show_pack

    loaded = catalog.load(catalog.find_root())
    chosen = planning.make(loaded, variant=variant, arch=arch, release=release, model=model)
    show_pack(trees.pack(chosen, loaded, out), json=json)
