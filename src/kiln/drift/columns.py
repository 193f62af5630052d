"""The sources that patches are judged on: every release of the index, a ref of upstream git, an image."""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import Version

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

_NEWEST = "newest"  # the column that stands for releases which could not be looked for
_BEYOND = "9999"  # newer than every release: what a ref of git counts as, unless it is named like a release
_RELEASE_REF = re.compile(r"(?:.*/)?v?(\d+(?:\.\d+)+)")
_UNREAD: dict[str, bytes] = {}


@dataclass(frozen=True, kw_only=True)
class Known:
    """Releases as columns; `fetched_bytes` came over the wire to read them."""

    subjects: tuple[Subject, ...]
    fetched_bytes: int


def paths(catalog: Catalog) -> tuple[str, ...]:
    """Return every file that a patch touches on some release."""
    editions = (edition for patch in catalog.patches.values() for edition in patch.editions.values())
    return tuple(sorted({path for edition in editions for path in edition.files}))


def releases(catalog: Catalog, also: Callable[[Collection[str]], Collection[str]], reporter: Reporter) -> Known:
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
    subjects += [_unread(name, "it has no wheel for Linux on x86-64") for name, file in new.items() if not file]
    subjects.sort(key=lambda subject: Version(subject.column.name))
    if problem:
        subjects.append(_unread(_NEWEST, f"new releases could not be looked for: {problem.message}"))
    return Known(subjects=tuple(subjects), fetched_bytes=sum(source.fetched_bytes for source in good))


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
    )
    return Subject(
        column=column,
        version=name,
        files=_UNREAD if isinstance(read, errors.KilnError | str) else read,
        names=frozenset() if failed else frozenset(source.stamps()),
        find=functools.cache(lambda: source.read(path for path in source.stamps() if _python(path))),
    )


def _unread(name: str, problem: str) -> Subject:
    column = Column(name=name, kind="release", identity="", in_catalog=False, problem=problem)
    version = _BEYOND if name == _NEWEST else name
    return Subject(column=column, version=version, files=_UNREAD, names=frozenset(), find=dict)


def _python(path: str) -> bool:
    return path.startswith(f"{DISTRIBUTION}/") and path.endswith(".py")


def ref(catalog: Catalog, repository: str, name: str, also: Callable[[Collection[str]], Collection[str]]) -> Subject:
    """Return a ref of a git repository as a column; raises what reading it raises."""
    from kiln.upstream import git_ref

    files = git_ref.at(repository, name, state=catalog.state)
    names = frozenset(files.stamps())
    match = _RELEASE_REF.fullmatch(name)
    return Subject(
        column=Column(name=name, kind="ref", identity=files.commit, in_catalog=False),
        version=match[1] if match else _BEYOND,
        files=files.read({*paths(catalog), *also(names)}),
        names=names,
        find=functools.cache(lambda: files.read(filter(_python, names))),
    )


@contextlib.contextmanager
def image(catalog: Catalog, reference: str, also: Callable[[Collection[str]], Collection[str]]) -> Iterator[Subject]:
    """Yield an image as a column; it is read, never run. Raises Missing without an engine, image or vLLM in it."""
    from kiln.image import files as image_files

    engine = engines.find(catalog.state / "engine")
    if engine is None:
        raise errors.Missing("no Docker engine answers, and the embedded one is not up", hint="./inv engine.up")
    with contextlib.closing(engine.client()) as client, image_files.opened(client, reference) as files:
        version = Version(files.version).base_version
        yield Subject(
            column=Column(name=reference, kind="image", identity=files.identity, in_catalog=False),
            version=version,
            files=files.read({*paths(catalog), *also(())}),
            names=frozenset(),
            find=dict,
        )
