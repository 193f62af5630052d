"""The task over upstream's releases: which patch breaks, is merged or withdrawn, on which one, since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command

if TYPE_CHECKING:
    from invoke.context import Context

_HELP = {
    "patch": "only this patch; the recipes are left out",
    "release": "only this release",
    "since": "only this release and newer ones",
    "ref": "a branch, tag or commit of upstream's git instead of the releases",
    "image": "the files in an image of the Docker engine instead of the releases; the image is not run",
    "bisect": "id of a patch: the first release that each of its editions does not fit; with --git the first commit",
    "as_": "release that a --ref or --image is judged as; default: as it is named, else newer than all",
    "git": "repository for --ref and --bisect, URL or folder; default of --ref: vLLM's own",
    "out": "folder that gets drift.json, drift.md, drift.xml (JUnit), index.html and the ported editions",
    "issues": "one issue for each new fact in the repository of the working folder, through gh",
    "dry_run": "with --issues: only say what would be done",
    "force": "PATCH@RELEASE=VERDICT: set a verdict by hand, to see that the alerts work",
    "json": "print JSON to stdout and nothing else",
}


@command(help=_HELP)
def drift(
    _: Context,
    *,
    patch: str = "",
    release: str = "",
    since: str = "",
    ref: str = "",
    image: str = "",
    as_: str = "",
    bisect: str = "",
    git: str = "",
    out: str = "",
    issues: bool = False,
    dry_run: bool = False,
    force: str = "",
    json: bool = False,
) -> None:
    """Say of every patch and recipe what each upstream release does to it; exit code 6 for what is new."""
    from kiln import catalog
    from kiln.drift import alerts, run
    from kiln.drift import bisect as bisecting
    from kiln.report import Reporter
    from kiln.tasks.show_drift import show_breaks, show_report

    loaded, reporter = catalog.load(catalog.find_root()), Reporter()
    ask = run.Ask(
        patch=patch,
        release=release,
        since=since,
        ref=ref,
        git=git,
        image=image,
        version=as_,
        force=force,
        bisect=bisect,
    )
    run.check(loaded, ask, written=bool(out or issues or dry_run), issues=issues, dry_run=dry_run)
    if bisect:
        show_breaks(bisecting.run(loaded, bisect, repository=git, reporter=reporter), json=json)
        return
    report = run.run(loaded, ask, reporter)
    try:
        show_report(report, json=json, out=out)
    finally:
        if issues:
            alerts.run(report, whole=ask.whole, dry_run=dry_run, reporter=reporter)
