"""Reads the catalog of a checkout into records, or lists everything wrong with it at once."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from kiln import errors
from kiln.catalog import records, strict_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RELEASES = Path("images/releases.yaml")
SERIES = Path("patches/series.yaml")
CONFIG = "kiln.yaml"

R = TypeVar("R", bound=records.Record)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything hand-edited that a plan is made from; `state` is where engine, caches and contexts live."""

    root: Path
    state: Path
    releases: records.Releases
    order: tuple[str, ...]
    patches: dict[str, records.Patch]
    recipes: dict[str, records.Recipe]
    config: records.Config

    def output(self, slug: str) -> Path:
        """Where receipts and evidence of a target go."""
        return self.root / "build" / slug

    def mirrored(self, reference: str) -> str:
        """Return what an image reference is pulled as: the longest prefix in kiln.yaml's `mirrors` replaced."""
        prefixes = [prefix for prefix in self.config.mirrors if reference.startswith(prefix)]
        if not prefixes:
            return reference
        longest = max(prefixes, key=len)
        return self.config.mirrors[longest] + reference.removeprefix(longest)


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder upwards that holds a catalog: from `start` or the working folder, else the source's."""
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


def load(root: Path) -> Catalog:
    """Read every file under `root`; raises one BadInput that lists all problems of all files."""
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
    models = [recipe.model.model_id for recipe in recipes]
    problems += [f"recipes/: two recipes are for {name}" for name in sorted(set(models)) if models.count(name) > 1]
    config_file = Path(os.environ.get("KILN_CONFIG", root / CONFIG))
    wanted = "KILN_CONFIG" in os.environ or config_file.exists()
    config = attempt(records.Config, config_file) if wanted else records.Config()
    if problems or not (releases and series and config):
        raise errors.BadInput("\n".join(problems))
    catalog = Catalog(
        root=root,
        state=state_of(root),
        releases=releases,
        order=series.order,
        patches=patches,
        recipes={recipe.model.model_id: recipe for recipe in recipes},
        config=config,
    )
    if problems := list(_cross_problems(catalog)):
        raise errors.BadInput("\n".join(problems))
    return catalog


def read(model: type[R], path: Path, *, root: Path) -> R:
    """Read one file into its record; raises BadInput with one line for each problem."""
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    data = strict_yaml.read(path, shown=shown)
    try:
        # through JSON, so that strict mode takes a list for a tuple and nothing else for anything else
        return TypeAdapter(model).validate_json(json.dumps(data), strict=True)
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
    yield from _series_problems(catalog)
    for folder, patch in catalog.patches.items():
        if patch.id != folder:
            yield f"patches/{folder}/patch.yaml: id: {patch.id!r} is not the name of its folder"
        for problem in _patch_problems(catalog, patch):
            yield f"patches/{folder}/patch.yaml: {problem}"
    for recipe in catalog.recipes.values():
        for problem in _recipe_problems(catalog, recipe):
            yield f"recipes/{recipe.model.model_id}.yaml: {problem}"


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
    for release in patch.editions:
        if release not in known_releases:
            yield errors.unknown("release", release, known_releases)
        if not (catalog.root / edition_path(patch.id, release)).is_file():
            yield f"edition {release}: {edition_path(patch.id, release)} is missing"


def _recipe_problems(catalog: Catalog, recipe: records.Recipe) -> Iterator[str]:
    """Yield names that no layer would ever be looked up by."""
    arches = catalog.releases.arches.values()
    products = {name for arch in arches for name in arch.products}
    groups = {name for arch in arches for name in (arch.generation, arch.vendor)}
    for problem in _unknown_names("feature", recipe.opt_in_features, recipe.features):
        yield f"opt_in_features: {problem}"
    for problem in _unknown_names("generation", recipe.hardware_overrides, groups):
        yield f"hardware_overrides: {problem}"
    for name, variant in recipe.variants.items():
        for problem in _unknown_names("product", variant.supported_hardware, products):
            yield f"variants.{name}: {problem}"
        for problem in _unknown_names("product or generation", variant.hardware_overrides, products | groups):
            yield f"variants.{name}.hardware_overrides: {problem}"


def _unknown_names(kind: str, names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    return (errors.unknown(kind, name, known) for name in sorted(set(names) - set(known)))


def edition_path(patch_id: str, release: str) -> Path:
    """Return where an edition lies, relative to the catalog's root."""
    return Path("patches") / patch_id / f"{release}.patch"
