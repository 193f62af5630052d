"""What is read from real releases by AST against what their own argument parsers say, and the catalog's recipes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from kiln import catalog, process
from kiln.drift import names, recipes
from kiln.drift.names import Names
from kiln.proof import kernels, trees
from kiln.report import Reporter
from kiln.upstream.wheel import RemoteWheel

ROOT = Path(__file__).resolve().parents[2]
CATALOG = catalog.load(ROOT)
RELEASES = tuple(CATALOG.releases.releases)
# the command line is in entrypoints/openai, then in launchers, then in common
LAYOUTS = ("0.24.0", "0.31.0", "0.33.0")
ASK = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform
vllm.platforms._current_platform = CpuPlatform()
from pathlib import Path
(path,) = [path for path in Path(sys.argv[1]).glob("vllm/entrypoints/*/cli_args.py")]
module = importlib.import_module(f"vllm.entrypoints.{path.parent.name}.cli_args")
parser = module.create_parser_for_docs()
import vllm.envs
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
print(json.dumps({
    "flags": {
        name[2:]: [str(action.default), action.choices and [str(one) for one in action.choices]]
        for name, action in parser._option_string_actions.items() if name.startswith("--")
    },
    "environment": sorted(vllm.envs.environment_variables),
    "tools": sorted(ToolParserManager.list_registered()),
    "reasoning": sorted(ReasoningParserManager.list_registered()),
}))
"""


@cache
def read(release: str) -> Names:
    wheel = RemoteWheel(CATALOG.releases.releases[release].wheel)
    return names.read(wheel.read(names.paths(wheel.names())))


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_is_readable(release: str) -> None:
    found = read(release)
    assert not found.unread
    assert len(found.flags) > 800
    assert len(found.environment) > 250
    assert "minimax_m3" in found.tool_parsers
    assert "minimax_m3" in found.reasoning_parsers
    assert Names.from_json(found.to_json()) == found


@pytest.mark.parametrize("release", LAYOUTS)
def test_the_release_itself_names_the_same(release: str, tmp_path: Path) -> None:
    python = kernels.ensure(CATALOG, Reporter(quiet=True))
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    answer = process.run((str(python), "-c", ASK, str(trees.released(CATALOG, release))), env=env, timeout_s=300)
    assert answer.code == 0, answer.stderr[-2000:]
    said = json.loads(answer.stdout.splitlines()[-1])
    found = read(release)
    flags = {name: setting for name, setting in found.flags.items() if "." not in name}
    assert {*flags} == {*said["flags"]} - {"help"}
    assert {*found.environment} == {*said["environment"]}
    assert sorted(found.tool_parsers) == said["tools"]
    assert sorted(found.reasoning_parsers) == said["reasoning"]
    for name, setting in flags.items():
        default, choices = said["flags"][name]
        if setting.choices and choices:
            assert {*setting.choices} == {*choices} - {"None"}, name
        # an enumeration's default is written by its member, and an opposite's has the opposite default
        if setting.default and setting.switch == "no" and not default.startswith("MambaBackendEnum"):
            assert setting.default == default, name


def test_every_release_takes_what_it_gets_and_four_get_less_than_the_recipe_has() -> None:
    columns = [(release, read(release)) for release in RELEASES]
    assert not [fact for fact in recipes.check(CATALOG, columns) if not fact.known]
    everywhere = {model: recipe.model_copy(update={"args_since": {}}) for model, recipe in CATALOG.recipes.items()}
    facts = recipes.check(replace(CATALOG, recipes=everywhere), columns)
    assert [(fact.column, fact.name, fact.problem, fact.origin) for fact in facts if not fact.known] == [
        (release, "--attention_config.minimax_m3_msa_decode_backend", "unknown", ("variants.nvfp4",))
        for release in ("0.24.0", "0.25.0", "0.25.1", "0.26.0")
    ]
