"""Reads the catalog of a checkout into records, or lists everything wrong with it at once."""

from __future__ import annotations

import functools
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from kiln import errors
from kiln.catalog import installs, records, strict_yaml
from kiln.catalog import locked as locks
from kiln.catalog.lock_records import Lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

RELEASES = Path("images/releases.yaml")
SERIES = Path("patches/series.yaml")
CONFIG = "kiln.yaml"
INSTALL_SCRIPTS = ("build.py", "facts.py", "finish.py", "install.py", "protect.py", "settle.py")
_TWIN_FILES = ("Dockerfile", "rename.py", "slim.py")
_BASE_FILES = ("packages.txt", "builder.txt", "finish.sh")

R = TypeVar("R", bound=records.Record)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that a plan is made from; `state` is where engine, caches and contexts live."""

    root: Path
    state: Path
    releases: records.Releases
    lock: Lock
    order: tuple[str, ...]
    patches: dict[str, records.Patch]
    recipes: dict[str, records.Recipe]
    config: records.Config

    def output(self, slug: str) -> Path:
        """Where receipts and evidence of a target go."""
        return self.root / "build" / slug

    def mirrored(self, reference: str) -> str:
        """Return what an image reference is pulled as: the longest prefix in kiln.yaml's `mirrors` replaced."""
        mirrors = {prefix.rstrip("/"): mirror.rstrip("/") for prefix, mirror in self.config.mirrors.items()}
        prefixes = [prefix for prefix in mirrors if _begins(reference, prefix)]
        if not prefixes:
            return reference
        longest = max(prefixes, key=len)
        return mirrors[longest] + reference.removeprefix(longest)


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder upwards from `start` that holds a catalog.

    Without `start`: the folder that KILN_ROOT names, else upwards from the working folder, else the source's.
    """
    named = os.environ.get("KILN_ROOT")
    if named and not start:
        if (Path(named) / RELEASES).is_file():
            return Path(named).resolve()
        hint = "KILN_ROOT names a whole checkout of Kiln; ./inv sets it to its own folder"
        raise errors.BadInput(f"KILN_ROOT={named}: no {RELEASES} in this folder", hint=hint)
    starts = [start] if start else [Path.cwd(), Path(__file__)]
    for folder in (parent for begin in starts for parent in (begin, *begin.resolve().parents)):
        if (folder / RELEASES).is_file():
            return folder.resolve()
    raise errors.BadInput(
        f"{starts[0]}: no {RELEASES} in this folder or above", hint="run Kiln inside its checkout: cd kiln"
    )


def state_of(root: Path) -> Path:
    """Return `.kiln` beside the catalog at `root`, or the folder that KILN_HOME names."""
    return Path(os.environ.get("KILN_HOME", root / ".kiln")).resolve()


def load(root: Path, *, locked: bool = True) -> Catalog:
    """Read every file under `root`; raises one BadInput that lists all problems of all files.

    With `locked=False` images/lock.json and the requirements of a twin may be missing or old, for who is about to make
    them.
    """
    problems: list[str] = []

    def attempt(model: type[R], path: Path) -> R | None:
        try:
            return read(model, path, root=root)
        except errors.BadInput as error:
            problems.append(error.message)
            return None

    releases = attempt(records.Releases, root / RELEASES)
    series = attempt(records.SeriesOrder, root / SERIES)
    patch_files = sorted((root / "patches").glob("*/patch.yaml"))
    patches = {path.parent.name: patch for path in patch_files if (patch := attempt(records.Patch, path))}
    recipe_files = sorted((root / "recipes").glob("*/*.yaml"))
    recipes = [recipe for path in recipe_files if (recipe := attempt(records.Recipe, path))]
    if not recipe_files:
        problems.append("recipes/: holds no ORGANISATION/MODEL.yaml")
    models = [recipe.model.model_id for recipe in recipes]
    problems += [f"recipes/: two recipes are for {name}" for name in sorted(set(models)) if models.count(name) > 1]
    config, wrong = _config(root)
    lock, damage = _lock(root, locked=locked)
    problems += [*wrong, *damage]
    if problems or not (releases and series and config and lock):
        raise _refused(problems, locked=locked)
    catalog = Catalog(
        root=root,
        state=state_of(root),
        releases=releases,
        lock=lock,
        order=series.order,
        patches=patches,
        recipes={recipe.model.model_id: recipe for recipe in recipes},
        config=config,
    )
    stale = locks.problems(releases, lock) if locked else ()
    if problems := [*_cross_problems(catalog), *_missing_files(catalog, locked=locked), *stale]:
        raise _refused(problems, locked=locked)
    return catalog


def _config(root: Path) -> tuple[records.Config | None, list[str]]:
    """Return kiln.yaml, or the file that KILN_CONFIG names, its paths made whole; or what is wrong with it."""
    path = Path(os.environ.get("KILN_CONFIG", root / CONFIG))
    if "KILN_CONFIG" not in os.environ and not path.exists():
        return records.Config(), []
    try:
        config = read(records.Config, path, root=root)
    except errors.BadInput as error:
        return None, [error.message]
    problems = [
        f"{path.name}: mirrors: {prefix}: holds a user or a password; leave it out: git and Docker have their own"
        for prefix, mirror in config.mirrors.items()
        if "@" in mirror and not mirror.startswith("ssh://")
    ]
    if config.ca is None:
        return config, problems
    bundle = path.resolve().parent / config.ca
    if not bundle.is_file():
        problems.append(f"{path.name}: ca: {config.ca}: {'is a folder' if bundle.is_dir() else 'no such file'}")
    return config.model_copy(update={"ca": bundle}), problems


def _lock(root: Path, *, locked: bool) -> tuple[Lock | None, list[str]]:
    """Return the lock, or what is wrong with its file."""
    try:
        return read_lock(root, may_be_missing=not locked), []
    except errors.BadInput as error:
        return None, [error.message]


def read_lock(root: Path, *, may_be_missing: bool) -> Lock:
    """Read images/lock.json alone; raises BadInput."""
    if may_be_missing and not (root / locks.LOCK).exists():
        return Lock()
    return _validated(Lock, locks.read(root), locks.LOCK)


def _refused(problems: Sequence[str], *, locked: bool) -> errors.BadInput:
    """Return the error that lists them all; what ends a wrong lock is said to who is not about to make it, too."""
    hint = locks.HINT if locked else f"git checkout {locks.LOCK}; or delete it, then {locks.HINT}"
    of_lock = any(line.startswith(f"{locks.LOCK}:") for problem in problems for line in problem.splitlines())
    return errors.BadInput("\n".join(problems), hint=hint if of_lock else "")


def read(model: type[R], path: Path, *, root: Path) -> R:
    """Read one file into its record; raises BadInput with one line for each problem."""
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    data = strict_yaml.read(path, shown=shown)
    if data is None and model is not records.Config:
        raise errors.BadInput(f"{shown}: is empty")
    # through JSON, so that strict mode takes a list for a tuple and nothing else for anything else
    return _validated(model, json.dumps({} if data is None else data), shown)


def _validated(model: type[R], text: str | bytes, shown: Path) -> R:
    try:
        return TypeAdapter(model).validate_json(text, strict=True)
    except ValidationError as error:
        raise errors.BadInput("\n".join(_sentences(error, shown, model))) from error


def _sentences(error: ValidationError, shown: Path, model: type[BaseModel]) -> Iterator[str]:
    for item in error.errors(include_url=False, include_input=True):
        where = ": ".join([str(shown), ".".join(str(part) for part in item["loc"])]).removesuffix(": ")
        if item["type"] == "extra_forbidden":
            yield f"{where}: {errors.unknown('key', str(item['loc'][-1]), _field_names(model))}"
        elif item["type"] == "missing":
            yield f"{where}: missing"
        else:
            yield f"{where}: {item['msg']} (found {json.dumps(item['input'])[:80]})"


@functools.cache
def _field_names(model: type[BaseModel]) -> frozenset[str]:
    schema: Any = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return frozenset(name for part in parts for name in part.get("properties", {}))


def _cross_problems(catalog: Catalog) -> Iterator[str]:
    """Yield what no single file can see: names that other files must know."""
    releases = catalog.releases
    if releases.default_release not in releases.releases:
        problem = errors.unknown("release", releases.default_release, releases.releases)
        yield f"{RELEASES}: default_release: {problem}"
    yield from _matrix_problems(catalog)
    yield from _series_problems(catalog)
    for folder, patch in catalog.patches.items():
        if patch.id != folder:
            yield f"patches/{folder}/patch.yaml: id: {patch.id!r} is not the name of its folder"
        for problem in _patch_problems(catalog, patch):
            yield f"patches/{folder}/patch.yaml: {problem}"
    for recipe in catalog.recipes.values():
        for problem in _recipe_problems(catalog, recipe):
            yield f"recipes/{recipe.model.model_id}.yaml: {problem}"


def _matrix_problems(catalog: Catalog) -> Iterator[str]:
    releases = catalog.releases
    variants = {name for recipe in catalog.recipes.values() for name in recipe.variants}
    for kind, names, known in (
        ("release", releases.matrix.releases, {*releases.releases}),
        ("variant", releases.matrix.variants, variants),
        ("arch", releases.matrix.arches, {*releases.arches}),
    ):
        yield from (f"{RELEASES}: matrix: {problem}" for problem in _unknown_names(kind, names, known))


def _series_problems(catalog: Catalog) -> Iterator[str]:
    listed, found = set(catalog.order), set(catalog.patches)
    if len(listed) != len(catalog.order):
        yield f"{SERIES}: a patch is listed twice"
    for name in sorted(listed - found):
        yield f"{SERIES}: {errors.unknown('patch', name, found)}"
    for name in sorted(found - listed):
        yield f"patches/{name}/patch.yaml: not listed in {SERIES}"


def _patch_problems(catalog: Catalog, patch: records.Patch) -> Iterator[str]:
    known_arches, known_releases = catalog.releases.arches, catalog.releases.releases
    known_variants = {name for recipe in catalog.recipes.values() for name in recipe.variants}
    applies = patch.applies
    yield from _unknown_names("arch", applies.arches, known_arches)
    yield from _unknown_names("model", applies.models, catalog.recipes)
    yield from _unknown_names("variant", applies.variants, known_variants)
    for problem in _unknown_names("pin", patch.preconditions, installs.PINS):
        yield f"preconditions: {problem}"
    for release in patch.editions:
        if release not in known_releases:
            yield errors.unknown("release", release, known_releases)
        if not (catalog.root / edition_path(patch.id, release)).is_file():
            yield f"edition {release}: {edition_path(patch.id, release)} is missing"


def _missing_files(catalog: Catalog, *, locked: bool) -> Iterator[str]:
    """Yield the files that a build of one of the releases would read, and that are not there."""
    images = Path("images")
    vendors = {arch.vendor for arch in catalog.releases.arches.values()}
    twins = {release: pins.twin for release, pins in catalog.releases.releases.items() if pins.twin}
    needed = [
        images / kind / "Dockerfile" for kind, vendor in (("rocm", "amd"), ("cuda", "nvidia")) if vendor in vendors
    ]
    needed += [images / "install" / name for name in INSTALL_SCRIPTS]
    if twins:
        needed += [images / "twin" / name for name in _TWIN_FILES]
    if any(twin.base == "debian" for twin in twins.values()):
        needed += [images / "twin/base" / name for name in _BASE_FILES]
    yield from (f"{path}: is missing" for path in needed if not (catalog.root / path).is_file())
    for release, twin in twins.items() if locked else ():
        if not (catalog.root / twin.requirements).is_file():
            at = f"{RELEASES}: releases.{release}.twin.requirements"
            yield f"{at}: {twin.requirements} is missing; make it: ./inv lock.twin --release {release}"


def _recipe_problems(catalog: Catalog, recipe: records.Recipe) -> Iterator[str]:
    """Yield names that no layer would ever be looked up by."""
    arches = catalog.releases.arches.values()
    products = {name for arch in arches for name in arch.products}
    groups = {name for arch in arches for name in (arch.generation, arch.vendor)}
    for problem in _unknown_names("feature", recipe.opt_in_features, recipe.features):
        yield f"opt_in_features: {problem}"
    for problem in _unknown_names("generation", recipe.hardware_overrides, groups):
        yield f"hardware_overrides: {problem}"
    for problem in _unknown_names("flag", recipe.args_since, _flags(recipe)):
        yield f"args_since: {problem}"
    for name, variant in recipe.variants.items():
        for problem in _unknown_names("product", variant.supported_hardware, products):
            yield f"variants.{name}: {problem}"
        for problem in _unknown_names("product or generation", variant.hardware_overrides, products | groups):
            yield f"variants.{name}.hardware_overrides: {problem}"


def _flags(recipe: records.Recipe) -> set[str]:
    """Return every flag that some layer sets."""
    layers = [*recipe.variants.values(), *recipe.hardware_overrides.values()]
    layers += [layer for variant in recipe.variants.values() for layer in variant.hardware_overrides.values()]
    features = (feature.args for feature in recipe.features.values())
    words = itertools.chain(recipe.model.base_args, *features, *(layer.extra_args for layer in layers))
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def _begins(reference: str, prefix: str) -> bool:
    """Say whether whole parts of a reference are the prefix; a colon ends one before a tag, not before a port."""
    rest = reference.removeprefix(prefix)
    return reference.startswith(prefix) and (rest[:1] in {"", "/", "@"} or (rest[0] == ":" and "/" not in rest))


def _unknown_names(kind: str, names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    return (errors.unknown(kind, name, known) for name in sorted(set(names) - set(known)))


def edition_path(patch_id: str, release: str) -> Path:
    """Return where an edition lies, relative to the catalog's root."""
    return Path("patches") / patch_id / f"{release}.patch"
