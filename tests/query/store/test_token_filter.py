"""The options of a filter are declared once, and are the same ones on the command line, in URLs and in SQL."""

from __future__ import annotations

from dataclasses import fields

import click
from starlette.testclient import TestClient

from paramdex import Atlas, TokenFilter
from paramdex.cli import cli
from paramdex.store.token_filter import FLAGS, RULES, TOKEN_RULES


def test_every_field_is_an_option_of_the_command_line() -> None:
    assert [*RULES] == [field.name for field in fields(TokenFilter)]
    for name, of_pairs in (("show", True), ("find", True), ("search", False), ("lens", False)):
        options = {param.opts[-1]: param for param in cli.commands[name].params if isinstance(param, click.Option)}
        for field, rule in RULES.items():
            option = options.get(f"--{field.replace('_', '-')}")
            if rule.of_pairs and not of_pairs:
                assert option is None
                continue
            assert option is not None
            assert option.help == f"show {rule.help}"
            assert option.is_flag == (field in FLAGS)


def test_rules_of_tokens_are_parameters_of_urls_and_boxes_of_forms(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/{address}.json"]["get"]
    described = {each["name"]: each.get("description") for each in operation["parameters"]}
    form = client.get("/bert/L0/ff_key/1").text
    for name, rule in TOKEN_RULES.items():
        assert described[name] == rule.help
        assert f'name="{name}" value="true"> {rule.label}</label>' in form


def test_rules_of_tokens_are_conditions_on_public_tables(atlas: Atlas) -> None:
    for rule in TOKEN_RULES.values():
        assert len(atlas.sql(f"SELECT DISTINCT {rule.passes} AS passes FROM {rule.table}")) >= 1
