"""Folds the layers of a recipe into one serve command and its environment, keeping where each value came from."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import Version

from kiln import errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.catalog import records

# flags whose meaning does not depend on a GPU: a twin serves with these
_FLAG = re.compile(r"--[A-Za-z0-9][A-Za-z0-9_.-]*")
_TWIN_FLAGS = ("--tool-call-parser", "--enable-auto-tool-choice", "--reasoning-parser")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One serve flag; `value` is None for a switch, `origin` names the recipe layer that set it."""

    name: str
    value: str | None
    origin: str

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name,) if self.value is None else (self.name, self.value)


@dataclass(frozen=True, kw_only=True)
class EnvVar:
    name: str
    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Serve:
    """What `vllm serve` gets for one target; `left_out` are flags that its release does not take yet."""

    model_id: str
    flags: tuple[Flag, ...]
    env: tuple[EnvVar, ...]
    left_out: tuple[Flag, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        return ("vllm", "serve", self.model_id, *(word for flag in self.flags for word in flag.words))

    @property
    def text(self) -> str:
        """The command as a person types it, one flag a line."""
        lines = [f"vllm serve {self.model_id}", *(shlex.join(flag.words) for flag in self.flags)]
        return " \\\n  ".join(lines)

    @property
    def twin_flags(self) -> tuple[Flag, ...]:
        """The flags that keep their meaning on a machine without a GPU."""
        return tuple(flag for flag in self.flags if flag.name in _TWIN_FLAGS)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    origin: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


def resolve(recipe: records.Recipe, variant: str, hardware: tuple[records.Arch, str], release: str) -> Serve:
    """Resolve single-node tensor-parallel serving of `variant` on one node of a product (arch, its name)."""
    arch, product = hardware
    layers = tuple(_layers(recipe, variant, arch, product))
    flags: dict[str, Flag] = {}
    env: dict[str, EnvVar] = {}
    for layer in layers:
        for flag in flags_of(layer.args, layer.origin):
            flags.pop(flag.name, None)  # the last layer wins, at its own place
            flags[flag.name] = flag
        env.update({name: EnvVar(name=name, value=value, origin=layer.origin) for name, value in layer.env})
    model_id = recipe.variants[variant].model_id or recipe.model.model_id
    early = {name for name, since in recipe.args_since.items() if Version(release) < Version(since)}
    return Serve(
        model_id=model_id,
        flags=tuple(flag for flag in flags.values() if flag.name not in early),
        env=tuple(env.values()),
        left_out=tuple(flag for flag in flags.values() if flag.name in early),
    )


def _layers(recipe: records.Recipe, name: str, arch: records.Arch, product: str) -> Iterator[_Layer]:
    """Yield the layers in the dialect's order: a later one is stronger."""
    variant = recipe.variants[name]
    yield _Layer(origin="model", args=recipe.model.base_args, env=tuple(recipe.model.base_env.items()))
    yield _of(f"variants.{name}", variant)
    if exact := variant.hardware_overrides.get(product):
        yield _of(f"variants.{name}.hardware_overrides.{product}", exact)
    size = _tensor_parallel_size(variant, arch.products[product])
    yield _Layer(origin="strategy.single_node_tp", args=("--tensor-parallel-size", str(size)))
    for where, overrides in (
        ("hardware_overrides", recipe.hardware_overrides),
        (f"variants.{name}.hardware_overrides", variant.hardware_overrides),
    ):
        for key in (arch.generation, arch.vendor):
            if key in overrides:
                yield _of(f"{where}.{key}", overrides[key])
                break
    for feature, spec in recipe.features.items():
        if feature not in recipe.opt_in_features:
            yield _Layer(origin=f"features.{feature}", args=spec.args)


def _of(origin: str, layer: records.Layer) -> _Layer:
    return _Layer(origin=origin, args=layer.extra_args, env=tuple(layer.extra_env.items()))


def _tensor_parallel_size(variant: records.Variant, product: records.Product) -> int:
    if variant.tp:
        return min(variant.tp, product.gpus)
    return 1 if variant.vram_minimum_gb <= product.vram_gb // product.gpus else product.gpus


def flags_of(args: Sequence[str], origin: str) -> Iterator[Flag]:
    """Yield the flags of one layer; raises BadInput for a word that is neither a flag nor the value of one."""
    index = 0
    while index < len(args):
        name, joined, value = args[index].partition("=")
        index += 1
        if not _FLAG.fullmatch(name):
            raise errors.BadInput(
                f"recipe, {origin}: {args[index - 1]!r} is neither a flag nor the value of one",
                hint="write each flag and each value as a word of its own",
            )
        if not joined and index < len(args) and not args[index].startswith("--"):
            value, joined = args[index], "="
            index += 1
        yield Flag(name=name, value=value if joined else None, origin=origin)
