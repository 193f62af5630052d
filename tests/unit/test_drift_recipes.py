"""Recipes against toy releases: every name that a release lacks, renamed or cannot tell is a fact, and no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, errors
from kiln.catalog import records
from kiln.drift import names, recipes
from kiln.drift.names import Names

if TYPE_CHECKING:
    from kiln.drift.records import RecipeFact

ROOT = Path(__file__).resolve().parents[2]
ENVS, ENGINE, PARSER = "vllm/envs.py", "vllm/engine/arg_utils.py", "vllm/utils/argparse_utils.py"
LINE, CONFIG = "vllm/entrypoints/openai/cli_args.py", "vllm/config/attention.py"
TOOLS, REASONING = "vllm/tool_parsers/__init__.py", "vllm/reasoning/__init__.py"
BACKENDS = "vllm/v1/attention/backends/registry.py"
RELEASE = {
    ENVS: """\
import os
environment_variables = {
    "VLLM_FAST": lambda: os.getenv("VLLM_FAST", "False").lower() in ("true", "1"),
    "VLLM_ASKED": lambda: bool(int(os.environ.get("VLLM_ASKED", "0"))),
    "VLLM_FOLDER": lambda: os.getenv("VLLM_FOLDER", None),
    "VLLM_EITHER": lambda: os.getenv("VLLM_EITHER", "a") if os.name else os.getenv("VLLM_EITHER", "b"),
    "VLLM_QUANTIZATION": env_with_choices("VLLM_QUANTIZATION", "NONE", ["INT4", "NONE"]),
}
""",
    CONFIG: '''\
Kind = Literal["auto", "fp8"]
Backend: TypeAlias = Literal["auto", "triton"]

@config
class Inner:
    size: int | None = Field(default=None, gt=0)

@config
class AttentionConfig:
    """What it is."""
    backend: AttentionBackendEnum | None = None
    kind: Kind = "auto"
    kv: Kind = "auto"
    split_count: int = Field(default=32, gt=0)
    inner: Inner | None = None
    extra: "dict[str, Any]" = field(default_factory=dict)
    foreign: Elsewhere | None = None
    made: bool = field(default=False, init=False)
    LIMIT: ClassVar[int] = 3

    @field_validator("kv", mode="before")
    def more(cls, value): ...

@config
class ModelConfig:
    max_model_len: int = 2048
    trust_remote_code: bool = False
    linear: Backend = "auto"
    changed: int = 3
    seed: int = 0

@config
class VllmConfig:
    attention_config: AttentionConfig = Field(default_factory=AttentionConfig)
''',
    ENGINE: """\
class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        model_kwargs = get_kwargs(ModelConfig)
        group = parser.add_argument_group(title="ModelConfig")
        group.add_argument("--max-model-len", **{**model_kwargs["max_model_len"], "default": None})
        group.add_argument("--trust-remote-code", **model_kwargs["trust_remote_code"])
        linear_kwargs = model_kwargs["linear"]
        linear_kwargs["type"] = lambda s: s.lower()
        group.add_argument("--linear-backend", **linear_kwargs)
        model_kwargs["changed"]["default"] = 4
        group.add_argument("--changed", **model_kwargs["changed"])
        group.add_argument("--seed", "-s", **model_kwargs["seed"])
        group.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
        group.add_argument("--attention-config", "-ac", **get_kwargs(VllmConfig)["attention_config"])
        parser.add_argument("--quiet", action="store_true", help="less")
""",
    LINE: """\
class BaseFrontendArgs:
    chat_template: str | None = None
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str = ""

    @classmethod
    def add_cli_args(cls, parser):
        for key, value in get_kwargs(cls).items():
            extra_flags = value.pop("flags", [])
            group.add_argument(*extra_flags, f"--{key.replace('_', '-')}", **value)

class FrontendArgs(BaseFrontendArgs):
    port: int = 8000

def make_arg_parser(parser):
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--headless", action="store_true", default=False)
    parser = FrontendArgs.add_cli_args(parser)
    parser = EngineArgs.add_cli_args(parser)
    return parser
""",
    PARSER: "class FlexibleArgumentParser(ArgumentParser):\n    pass\n",
    TOOLS: """\
_TOOL_PARSERS_TO_REGISTER = {"toy": ("toy", "ToyParser"), "other": ("other", "OtherParser")}
def register_lazy_tool_parsers():
    for name, (file, cls) in _TOOL_PARSERS_TO_REGISTER.items():
        ToolParserManager.register_lazy_module(name, file, cls)
""",
    REASONING: '_REASONING_PARSERS_TO_REGISTER = {"thinker": ("thinker", "Thinker")}\n',
    BACKENDS: 'class AttentionBackendEnum(Enum, metaclass=M):\n    TRITON_ATTN = "a.B"\n    FLASHINFER = "c.D"\n',
    "vllm/config/vllm.py": 'if "VLLM_ASKED" not in os.environ:\n    pass\n',
}
LAYER = records.Layer


def release(*edits: tuple[str, str, str]) -> Names:
    """Return the toy release with words of its files replaced; a file is left out by replacing "" with nothing."""
    files = dict(RELEASE)
    for path, old, new in edits:
        assert old in files[path], f"{path} does not hold {old!r}"
        files[path] = files[path].replace(old, new)
        if not old:
            del files[path]
    assert {*names.paths([*files, "vllm/other.py", "vllm/config/deep/er.py"])} == {*files}
    return names.read({path: text.encode() for path, text in files.items()})


def recipe(*args: str, env: dict[str, str] | None = None, **model: str) -> records.Recipe:
    return records.Recipe(
        meta=records.Meta(title="Toy", slug="toy", provider="Toy", description="Toy"),
        model=records.Model(
            model_id="toy/Toy", base_args=args, base_env=env or {}, **({"min_vllm_version": "0.1.0"} | model)
        ),
        features={},
        variants={
            "plain": records.Variant(
                precision="bf16", vram_minimum_gb=1, description="Toy", supported_hardware=("h100",)
            )
        },
    )


def facts(made: records.Recipe, *columns: Names | str) -> tuple[RecipeFact, ...]:
    """Return the facts on columns 0.1.0, 0.2.0 and so on."""
    whole = dataclasses.replace(catalog.load(ROOT), recipes={"toy": made})
    return recipes.check(whole, [(f"0.{at}.0", column) for at, column in enumerate(columns, 1)])


def brief(made: records.Recipe, *columns: Names | str) -> list[tuple[str, str, str, str]]:
    return [(fact.column, fact.name, fact.problem, fact.near) for fact in facts(made, *columns)]


def test_all_that_a_release_takes_is_no_fact() -> None:
    words = "--max-model-len 9 --trust-remote-code --attention_config.inner.size 3 --port 1"
    dotted = "--attention-config.backend flashinfer --attention-config.kind=fp8 --attention-config.kv from_validator"
    free = "--attention-config.extra.any.thing 3 --linear-backend Triton --enable-auto-tool-choice --headless --quiet"
    env = {"VLLM_FAST": "1", "VLLM_QUANTIZATION": "INT4", "NCCL_NOT_OURS": "1", "VLLM_FOLDER": "/x"}
    parsers = "--tool-call-parser toy --reasoning_parser thinker"
    assert facts(recipe(*f"{words} {dotted} {free} {parsers}".split(), env=env), release()) == ()


@pytest.mark.parametrize(
    ("words", "name", "near"),
    [
        ("--max-model-lenn 3", "--max-model-lenn", "--max-model-len"),
        ("--max-model 3", "--max-model", "--max-model-len"),
        ("--attention_config.split_cuont 3", "--attention_config.split_cuont", "--attention-config.split_count"),
        # before the dot `_` is `-`; after it, the name is a key, and keys are not changed
        ("--attention-config.split-count 3", "--attention-config.split-count", "--attention-config.split_count"),
        ("--attention-config.made true", "--attention-config.made", ""),
        ("--attention-config.LIMIT 4", "--attention-config.LIMIT", ""),
        ("--seed.leaf 4", "--seed.leaf", ""),
        ("--no-max-model-len", "--no-max-model-len", "--max-model-len"),
        ("--linear-backend tritn", "--linear-backend tritn", "--linear-backend triton"),
        ("--attention-config.backend NOWHERE", "--attention-config.backend NOWHERE", ""),
        ("--tool-call-parser tooy", "--tool-call-parser tooy", "--tool-call-parser toy"),
        ("--reasoning-parser toy", "--reasoning-parser toy", ""),
    ],
)
def test_a_flag_a_value_or_a_parser_that_no_release_has_is_unknown(words: str, name: str, near: str) -> None:
    (fact,) = facts(recipe(*words.split()), release())
    assert (fact.name, fact.problem, fact.near, fact.known) == (name, "unknown", near, False)
    assert fact.origin == ("model",)
    assert fact.kind == ("parser" if "parser" in name else "flag")
    assert "no release looked at has it" in fact.says


@pytest.mark.parametrize("variable", ["VLLM_FASTT", "VLLM_QUANTIZATION"])
def test_a_variable_or_a_value_of_one_that_no_release_has_is_unknown(variable: str) -> None:
    (fact,) = facts(recipe(env={variable: "INT44"}), release())
    assert (fact.kind, fact.problem) == ("environment", "unknown")
    assert fact.near == {"VLLM_FASTT": "VLLM_FAST", "VLLM_QUANTIZATION": "VLLM_QUANTIZATION=INT4"}[variable]


def test_what_a_later_release_brings_is_said() -> None:
    without = release((CONFIG, "    kind: Kind", "    other: Kind"))
    (fact,) = facts(recipe("--attention_config.kind", "fp8"), without, release())
    assert (fact.column, fact.problem) == ("0.1.0", "unknown")
    assert fact.says == "0.1.0 does not have --attention_config.kind; 0.2.0 is the first that has it"


def test_a_removed_variable_is_a_fact_in_every_release_from_then_on() -> None:
    gone = release((ENVS, '    "VLLM_FOLDER": lambda: os.getenv("VLLM_FOLDER", None),\n', ""))
    made = recipe(env={"VLLM_FOLDER": "/x"})
    assert brief(made, release(), gone, "not read", gone) == [
        ("0.2.0", "VLLM_FOLDER", "removed", ""),
        ("0.3.0", "sources", "unreadable", ""),
        ("0.4.0", "VLLM_FOLDER", "removed", ""),
    ]
    assert "0.1.0 had VLLM_FOLDER" in facts(made, release(), gone)[0].says


def test_a_renamed_flag_variable_key_value_and_parser_name_what_is_new() -> None:
    after = release(
        (ENGINE, "--max-model-len", "--max-model-length"),
        (ENVS, "VLLM_FOLDER", "VLLM_FOLDERS"),
        (CONFIG, "split_count", "split_counts"),
        (CONFIG, '"triton"', '"triton2"'),
        (TOOLS, '"other"', '"others"'),
    )
    words = "--max-model-len 3 --attention_config.split_count 4 --linear-backend triton --tool-call-parser other"
    assert brief(recipe(*words.split(), env={"VLLM_FOLDER": "/x"}), release(), after) == [
        ("0.2.0", "--max-model-len", "renamed", "--max-model-length"),
        ("0.2.0", "--attention_config.split_count", "renamed", "--attention-config.split_counts"),
        ("0.2.0", "--linear-backend triton", "renamed", "--linear-backend triton2"),
        ("0.2.0", "--tool-call-parser other", "renamed", "--tool-call-parser others"),
        ("0.2.0", "VLLM_FOLDER", "renamed", "VLLM_FOLDERS"),
    ]


def test_a_name_that_was_there_before_is_no_new_name() -> None:
    both = release((CONFIG, "    seed: int = 0", "    seed: int = 0\n    seeds: int = 0"))
    assert brief(recipe("--headless"), both, release((LINE, '"--headless"', '"--other"'))) == [
        ("0.2.0", "--headless", "removed", "")
    ]


def test_a_value_that_is_the_default_is_a_note_and_no_alert() -> None:
    words = "--seed 0 --port 8000 --attention_config.split_count 32 --no-trust-remote-code --linear-backend auto"
    found = facts(recipe(*words.split(), env={"VLLM_FAST": "0"}), release())
    assert [(fact.name, fact.problem, fact.known) for fact in found] == [
        (name, "default", True)
        for name in (
            *("--seed", "--port", "--attention_config.split_count", "--no-trust-remote-code", "--linear-backend"),
            "VLLM_FAST",
        )
    ]
    assert found[0].says == "--seed 0 is the default that 0.1.0's sources name"
    assert found[3].says == "--no-trust-remote-code is the default that 0.1.0's sources name"
    assert found[-1].says == "VLLM_FAST=0 is the default that 0.1.0's sources name, as False"


def test_a_default_that_is_not_sure_is_not_claimed() -> None:
    words = "--changed 3 --max-model-len 2048"  # changed later; given as None
    env = {"VLLM_ASKED": "0", "VLLM_EITHER": "a", "VLLM_FOLDER": "None"}  # vLLM asks whether the first is set at all
    assert facts(recipe(*words.split(), env=env), release()) == ()


def test_a_default_that_is_set_against_another_layer_is_needed() -> None:
    made = recipe(env={"VLLM_FAST": "1"})
    made = made.model_copy(update={"hardware_overrides": {"amd": LAYER(extra_env={"VLLM_FAST": "0"})}})
    assert facts(made, release()) == ()


def test_every_layer_is_read_and_named_as_the_serve_command_names_it() -> None:
    wrong = LAYER(extra_args=("--wrong", "1"), extra_env={"VLLM_WRONG": "1"})
    made = recipe("--wrong", "1", env={"VLLM_WRONG": "1"})
    plain = made.variants["plain"].model_copy(
        update={"hardware_overrides": {"h100": wrong}, "extra_args": wrong.extra_args, "extra_env": wrong.extra_env}
    )
    feature = records.Feature(description="Toy", args=("--wrong",))
    update = {
        "variants": {"plain": plain},
        "hardware_overrides": {"amd": wrong},
        "features": {"always": feature, "asked": feature},
        "opt_in_features": ("asked",),
    }
    flag, variable = facts(made.model_copy(update=update), release())
    layers = ("variants.plain", "variants.plain.hardware_overrides.h100", "hardware_overrides.amd")
    assert flag.origin == ("model", "features.always", "features.asked", *layers)
    assert variable.origin == ("model", *layers)


def test_the_flag_that_the_strategy_sets_is_looked_up_too() -> None:
    gone = release((ENGINE, "--tensor-parallel-size", "--tensor-parallel-ways"))
    (fact,) = facts(recipe(), release(), gone)
    assert (fact.name, fact.problem, fact.origin) == (
        *("--tensor-parallel-size", "renamed"),
        ("strategy.single_node_tp",),
    )


def test_a_release_below_what_the_recipe_needs_gives_no_fact_but_counts_as_before() -> None:
    gone = release((ENGINE, '"--quiet"', '"--silent"'))
    made = recipe("--quiet", min_vllm_version="0.2.0")
    assert [fact[:3] for fact in brief(made, gone, release(), gone)] == [("0.3.0", "--quiet", "removed")]
    whole = dataclasses.replace(catalog.load(ROOT), recipes={"toy": made})
    assert [fact.column for fact in recipes.check(whole, [("a-branch", gone)])] == ["a-branch"]


BROKEN = [
    ((ENVS, "environment_variables = {", "environment_variables = build({"), "VLLM_FAST", "syntax"),
    ((ENVS, "environment_variables = {", "variables = {"), "VLLM_FAST", "no dict"),
    ((ENVS, "import os", 'import os\nenvironment_variables["VLLM_X"] = 1'), "VLLM_FAST", "changed there"),
    ((ENVS, "import os", "import os\nenvironment_variables |= more()"), "VLLM_FAST", "changed there"),
    ((ENVS, '    "VLLM_FOLDER"', '    "VLLM_" + "X"'), "VLLM_FAST", "not written there"),
    ((ENVS, '    "VLLM_FOLDER":', "    **more, 'x':"), "VLLM_FAST", "not written there"),
    ((ENVS, "", ""), "VLLM_FAST", "not in this release"),
    ((ENGINE, '"--quiet"', "name()"), "--seed", "not written there"),
    ((ENGINE, "class EngineArgs:", "class EngineArgs"), "--seed", "syntax"),
    ((ENGINE, "", ""), "--seed", "not in this release"),
    ((CONFIG, "@config", "@@"), "--seed", "syntax"),
    ((LINE, "def make_arg_parser", "def make_parser"), "--seed", "in 0 of"),
    ((LINE, "key.replace('_', '-')", "spelled(key)"), "--seed", "not written there"),
    ((LINE, "FrontendArgs.add_cli_args", "ForeignArgs.add_cli_args"), "--seed", "in no file read"),
    ((PARSER, "pass", 'def f(self): self.register("action", A, B)'), "--seed", "unknown way"),
    ((PARSER, "class FlexibleArgumentParser", "class Renamed"), "--seed", "no class"),
    ((TOOLS, "_TOOL_PARSERS_TO_REGISTER = {", "_PARSERS = {"), "--tool-call-parser", "no dict"),
    (
        (TOOLS, "def register", 'ToolParserManager.register_module("x")\ndef register'),
        "--tool-call-parser",
        "one place",
    ),
    ((REASONING, '"thinker":', "name():"), "--reasoning-parser", "not written there"),
]


@pytest.mark.parametrize(("edit", "name", "why"), BROKEN, ids=[f"{edit[0]}-{why}" for edit, _, why in BROKEN])
def test_a_release_of_an_unknown_shape_is_unreadable_and_never_silent(
    edit: tuple[str, str, str], name: str, why: str
) -> None:
    words = "--seed 1 --tool-call-parser toy --reasoning-parser thinker"
    (fact,) = facts(recipe(*words.split(), env={"VLLM_FAST": "1"}), release(edit))
    assert (fact.problem, fact.known) == ("unreadable", False)
    assert fact.kind == ("environment" if name[0] == "V" else "parser" if "parser" in name else "flag")
    assert ("not read as Python" if why == "syntax" else why) in fact.says


def test_two_command_lines_are_one_too_many() -> None:
    files = RELEASE | {"vllm/entrypoints/common/cli_args.py": RELEASE[LINE]}
    assert "in 2 of" in names.read({path: text.encode() for path, text in files.items()}).unread["flag"]


def test_keys_of_a_type_that_is_nowhere_are_unreadable() -> None:
    (fact,) = facts(recipe("--attention-config.foreign.leaf", "1"), release())
    assert (fact.name, fact.problem) == ("--attention-config.foreign.leaf", "unreadable")


@pytest.mark.parametrize("data", [b"x = '\0'", b"(" * 100_000, b"a" * 5_000_000, b"\xff\xfe", b"-" * 200_000 + b"1"])
def test_hostile_files_are_unreadable(data: bytes) -> None:
    found = names.read(dict.fromkeys(RELEASE, data))
    assert {*found.unread} == {"flag", "environment", "tool parser", "reasoning parser"}
    assert not found.flags


def test_aliases_in_a_circle_end() -> None:
    assert "linear-backend" in release((CONFIG, '["auto", "triton"]', '["auto"] | Backend')).flags


def test_from_0_33_on_a_switch_has_a_name_for_its_opposite() -> None:
    pairs = f'class A:\n    p = {{"--enable-": "--disable-"}}\n{RELEASE[PARSER]}x.register("action", B, A)\n'
    assert brief(recipe("--disable-auto-tool-choice"), release()) != []
    newer = release((PARSER, RELEASE[PARSER], pairs))
    assert [fact[2] for fact in brief(recipe("--disable-auto-tool-choice"), newer)] == ["default"]


def test_names_survive_a_file_and_a_damaged_or_older_one_is_refused() -> None:
    found = release()
    text = found.to_json()
    assert Names.from_json(text) == found
    assert text == release().to_json()
    for broken in (
        text[:-9],
        "[]",
        "null",
        text.replace('"version":', '"v":'),
        text.replace('"version":1', '"version":0'),
    ):
        with pytest.raises(errors.BadInput):
            Names.from_json(broken)


def test_words_that_are_no_flags_are_refused() -> None:
    with pytest.raises(errors.BadInput, match="neither a flag"):
        facts(recipe("--seed", "1", "2"), release())
