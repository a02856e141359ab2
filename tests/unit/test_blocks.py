"""What a person sees of a block in the UI, and that a block is its model and nothing else."""

from __future__ import annotations

import ast
import textwrap
from uuid import uuid4

import pytest
from prefect.blocks.core import Block
from pydantic import BaseModel, ValidationError

import blocks
from blocks import CaseFolders, ComputeHost, MachineCalibration, MoquiParameters, QaCriteria, SSHCredentials
from blocks.site import plain
from mqi import qa
from mqi.engines.settings import EngineSettings
from mqi.errors import ConfigurationError
from mqi.hosts.base import HostSettings
from mqi.hosts.ssh_settings import SshCredentials
from mqi.intake import IntakeRules

KINDS: list[type[Block]] = [
    CaseFolders,
    ComputeHost,
    MachineCalibration,
    MoquiParameters,
    QaCriteria,
    SSHCredentials,
]
BEHIND: list[tuple[type[Block], type[BaseModel], dict[str, object]]] = [
    (CaseFolders, IntakeRules, {"inbox": ("/inbox",), "results": "/results"}),
    (ComputeHost, HostSettings, {"name": "local", "workspace": "/workspace"}),
    (MoquiParameters, EngineSettings, {"engine": "moqui", "command": ("/opt/moqui/tps_env",)}),
    (QaCriteria, qa.QaCriteria, {"gamma_dose_percent": 2.0}),
    (SSHCredentials, SshCredentials, {"passphrase": "open sesame"}),
]


def own_fields(kind: type[Block]) -> set[str]:
    return set(kind.model_fields) - set(Block.model_fields)


def test_every_block_is_offered() -> None:
    offered = {getattr(blocks, name) for name in blocks.__all__}
    assert set(KINDS) == {one for one in offered if isinstance(one, type) and issubclass(one, Block)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_explains_itself_to_who_sees_it_in_the_ui(kind: type[Block]) -> None:
    assert kind.get_description()
    assert kind._block_type_name and kind._block_type_name.startswith("MQI ")
    assert kind.get_block_type_slug() == kind._block_type_slug
    for name in own_fields(kind):
        assert (kind.model_fields[name].description or "").strip(), f"{name} is not described"


@pytest.mark.parametrize("kind", KINDS)
def test_a_blocks_example_is_python_and_uses_what_there_is(kind: type[Block]) -> None:
    example = kind.get_code_example()
    assert example and kind.__name__ in example
    code = textwrap.dedent(example.partition("::")[2])
    assert code.strip()
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.partition(".")[0] in ("blocks", "mqi")
        ):
            module = __import__(node.module, fromlist=["_"])
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ui_can_draw_a_blocks_form(kind: type[Block]) -> None:
    form = kind.model_json_schema()["properties"]
    assert own_fields(kind) <= set(form)


@pytest.mark.parametrize(("kind", "model", "values"), BEHIND)
def test_a_block_has_its_models_fields_limits_and_defaults(
    kind: type[Block], model: type[BaseModel], values: dict[str, object]
) -> None:
    assert set(model.model_fields) <= own_fields(kind)
    for name, field in model.model_fields.items():
        mine = kind.model_fields[name]
        assert (mine.annotation, mine.default, mine.description, mine.metadata) == (
            field.annotation,
            field.default,
            field.description,
            field.metadata,
        )
    own = {name: value for name, value in values.items() if name in model.model_fields}
    assert plain(kind(**values), model) == model(**own)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (CaseFolders, {"inbox": ("/inbox",), "results": "/results", "settle_s": -1}),
        (ComputeHost, {"name": "local", "workspace": "relative"}),
        (MoquiParameters, {"parameters": {"NoSuchParameter": 1}}),
        (QaCriteria, {"gamma_dose_percent": 0.0}),
        (QaCriteria, {"gamma_tolerance_percent": 80.0, "gamma_action_percent": 90.0}),
    ],
)
def test_what_the_model_refuses_cannot_be_saved_as_a_block(
    kind: type[Block], wrong: dict[str, object]
) -> None:
    with pytest.raises((ValidationError, ConfigurationError)):
        kind(**wrong)


def test_a_calibration_with_a_value_missing_cannot_be_saved_as_a_block() -> None:
    with pytest.raises((ValidationError, ConfigurationError)):
        MachineCalibration(text="XPOSOFFSET 1\n")


def test_what_is_secret_of_the_credentials_is_known_as_secret_and_not_shown() -> None:
    secrets = {"key_text": "-----BEGIN KEY", "passphrase": "open sesame", "password": "hunter2!"}
    assert set(SSHCredentials._to_block_schema(block_type_id=uuid4()).fields["secret_fields"]) == set(secrets)
    block = SSHCredentials(**secrets)
    shown = f"{block!r}{block}{block.model_dump()}{block.model_dump_json()}"
    assert not [secret for secret in secrets.values() if secret in shown]
