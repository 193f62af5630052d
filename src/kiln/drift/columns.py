"""The sources that patches are judged on: every release of the index, a ref of upstream git, an image."""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from kiln import engine as engines
from kiln import errors
from kiln.catalog import records
from kiln.drift.judge import Subject
from kiln.drift.records import Column
from kiln.image.rehearsal import DISTRIBUTION
from kiln.upstream import index
from kiln.upstream.source import Released, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from kiln.catalog import Catalog
    from kiln.report import Reporter

    Also = Callable[[Collection[str]], Collection[str]]

_NEWEST = "newest"  # the column that stands for releases which could not be looked for
_BEYOND = "9999"  # newer than every release: what a ref of git counts as, unless it is named like a release
_RELEASE_REF = re.compile(r"(?:.*/)?v?(\d{1,6}(?:\.\d{1,6})+)(?:[.-]?(?:a|b|rc|post)\d{1,6})?")
_UNREAD: dict[str, bytes] = {}


@dataclass(frozen=True, kw_only=True)
class Known:
    """Releases as columns, and the wheels that they are read from."""

    subjects: tuple[Subject, ...]
    sources: tuple[Released, ...]

    @property
    def fetched_bytes(self) -> int:
        """Return what came over the wire so far."""
        return sum(source.fetched_bytes for source in self.sources)


def paths(catalog: Catalog) -> tuple[str, ...]:
    """Return every file that a patch touches on some release."""
    editions = (edition for patch in catalog.patches.values() for edition in patch.editions.values())
    return tuple(sorted({path for edition in editions for path in edition.files}))


def releases(catalog: Catalog, also: Also, reporter: Reporter) -> Known:
    """Return every release of the catalog and every newer one of the index, in order.

    Reads the files that patches touch and those that `also` picks from the names of a wheel. What cannot be read, even
    the list of releases, is a column with a problem.
    """
    oldest = min(map(Version, catalog.releases.releases))
    with reporter.step("the package index") as _:
        listed, problem = _listed()
    pins = {name: pins.wheel for name, pins in catalog.releases.releases.items()}
    new = {name: file for name, file in index.releases(listed).items() if name not in pins and Version(name) > oldest}
    urls = {name: _url(pin, listed, problem) for name, pin in pins.items()}
    pins |= {name: _pin(file) for name, file in new.items() if file}
    urls |= {name: file.url for name, file in new.items() if file}
    cache = catalog.state / "wheels"
    sources = {name: Released(pin=pins[name], url=str(url), cache=cache) for name, url in urls.items()}
    good = [source for name, source in sources.items() if not isinstance(urls[name], errors.KilnError)]
    with reporter.step(f"files of {len(good)} releases") as detail:
        detail(f"{len(paths(catalog))} paths")
        read = dict(zip(map(id, good), read_all(good, lambda names: {*paths(catalog), *also(names)}), strict=True))
    subjects = [_released(name, source, read.get(id(source), urls[name]), catalog) for name, source in sources.items()]
    lacking = "the index lists no wheel of it for Linux on x86-64 with a hash"
    subjects += [_unread(name, lacking) for name, file in new.items() if not file]
    subjects.sort(key=lambda subject: Version(subject.column.name))
    if problem:
        subjects.append(_unread(_NEWEST, f"new releases could not be looked for: {problem.message}", problem.hint))
    return Known(subjects=tuple(subjects), sources=tuple(good))


def _listed() -> tuple[tuple[index.Listed, ...], errors.KilnError | None]:
    try:
        with contextlib.closing(index.session()) as session:
            return index.files(DISTRIBUTION, None, session), None
    except errors.KilnError as error:
        return (), error


def _url(
    pin: records.WheelPin, listed: Sequence[index.Listed], problem: errors.KilnError | None
) -> str | errors.KilnError:
    """Return where a pinned wheel lies; without an index, what the cache holds of it still counts."""
    if problem:
        return ""
    try:
        return index.url_of(pin, listed)
    except errors.KilnError as error:
        return error


def _pin(file: index.Listed) -> records.WheelPin:
    return records.WheelPin(project=DISTRIBUTION, file=file.file, sha256=file.sha256)


def _released(
    name: str, source: Released, read: Mapping[str, bytes] | errors.KilnError | str, catalog: Catalog
) -> Subject:
    failed = isinstance(read, errors.KilnError)
    column = Column(
        name=name,
        kind="release",
        identity=source.pin.sha256,
        in_catalog=name in catalog.releases.releases,
        problem=read.message if isinstance(read, errors.KilnError) else "",
        next=read.hint if isinstance(read, errors.KilnError) else "",
    )
    return Subject(
        column=column,
        version=name,
        files=_UNREAD if isinstance(read, errors.KilnError | str) else read,
        names=frozenset() if failed else frozenset(source.stamps()),
        find=functools.cache(lambda: source.fetch(path for path in source.stamps() if _python(path))),
    )


def _unread(name: str, problem: str, hint: str = "") -> Subject:
    column = Column(name=name, kind="release", identity="", in_catalog=False, problem=problem, next=hint)
    version = _BEYOND if name == _NEWEST else name
    return Subject(column=column, version=version, files=_UNREAD, names=frozenset(), find=dict)


def _python(path: str) -> bool:
    return path.startswith(f"{DISTRIBUTION}/") and path.endswith(".py")


def ref(catalog: Catalog, repository: str, name: str, also: Also, *, version: str) -> Subject:
    """Return a ref of a git repository as a column, judged as the release `version`; raises what reading it raises.

    Without a version a ref that is named like a release counts as it, any other as newer than every release.
    """
    from kiln.upstream import git_ref

    files = git_ref.at(repository, name, state=catalog.state)
    names = frozenset(files.stamps())
    match = _RELEASE_REF.fullmatch(name)
    return Subject(
        column=Column(name=f"git:{name}", kind="ref", identity=files.commit, in_catalog=False),
        version=version or (match[1] if match else _BEYOND),
        files=files.read({*paths(catalog), *also(names)}),
        names=names,
        find=functools.cache(lambda: files.read(filter(_python, names))),
    )


@contextlib.contextmanager
def image(catalog: Catalog, reference: str, known: Sequence[Subject], also: Also, *, version: str) -> Iterator[Subject]:
    """Yield an image as a column, judged as the release that its vLLM says it is; it is read, never run.

    Raises Missing without an engine, image or vLLM in it, BadInput for one that says no version.
    """
    from kiln.image import files as image_files

    engine = engines.find(catalog.state / "engine")
    if engine is None:
        raise errors.Missing("no Docker engine answers, and the embedded one is not up", hint="./inv engine.up")
    with contextlib.closing(engine.client()) as client, image_files.opened(client, reference) as files:
        said = version or _base_version(files.version, reference)
        listed = next((subject.names for subject in known if subject.column.name == said), known[-1].names)
        yield Subject(
            column=Column(name=f"image:{reference}", kind="image", identity=files.identity, in_catalog=False),
            version=said,
            files=files.read({*paths(catalog), *also(listed)}),
            names=frozenset(),
            find=dict,
        )


def _base_version(said: str, reference: str) -> str:
    try:
        return Version(said).base_version
    except InvalidVersion as error:
        message = f"{reference}: its vLLM calls itself {said!r}, which is no version"
        raise errors.BadInput(message, hint=f"./inv drift --image {reference} --as RELEASE") from error
