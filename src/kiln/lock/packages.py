"""Records the Debian packages that a twin's base and builder are made of, and names those that another build gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.catalog import lock_records, locked
from kiln.image import base as roots_of
from kiln.lock import store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kiln.catalog import Catalog
    from kiln.image.base import Name, Package
    from kiln.report import Reporter

_MOST_NAMED = 5


def write(catalog: Catalog, reporter: Reporter) -> bool:
    """Write the packages of both roots, which are made for it, into images/lock.json; say whether that changed it."""
    roots = roots_of.ensure_both(catalog.state / "bases", reporter, data=catalog.root / "images/twin/base")
    names: tuple[Name, Name] = ("base", "builder")
    debian = {name: _locked(root.packages) for name, root in zip(names, roots, strict=True)}
    return store.update(catalog.root, lambda lock: lock.model_copy(update={"debian": debian}))


def differences(lock: lock_records.Lock, *, base: Iterable[Package], builder: Iterable[Package]) -> Iterator[str]:
    """Yield a line for each root whose packages are not the recorded ones; a root that is not recorded has none."""
    roots: dict[Name, Iterable[Package]] = {"base": base, "builder": builder}
    for name, packages in roots.items():
        if name in lock.debian and (changes := list(_changes(lock.debian[name], _locked(packages)))):
            more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
            named = ", ".join(changes[:_MOST_NAMED])
            yield f"the twin's {name} has other Debian packages than {locked.LOCK} records: {named}{more}"


def _changes(was: Iterable[lock_records.LockedPackage], now: Iterable[lock_records.LockedPackage]) -> Iterator[str]:
    before, after = ({each.name: each for each in side} for side in (was, now))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            old, new = (side[name].version if name in side else "none" for side in (before, after))
            yield f"{name} {old} -> {new}"


def _locked(packages: Iterable[Package]) -> tuple[lock_records.LockedPackage, ...]:
    made = (lock_records.LockedPackage(name=each.name, version=each.version, sha256=each.sha256) for each in packages)
    return tuple(sorted(made, key=lambda each: (each.name, each.version)))
