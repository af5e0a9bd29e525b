"""schemathesis asks what the OpenAPI description allows, and what it does not: no answer is a fault of the server."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import paramdex
from paramdex.web.app import make_app
from web_helpers import LIMITS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestWarning")


def test_no_question_is_a_fault_of_the_server(small_atlas: Path) -> None:
    with warnings.catch_warnings():  # what it imports is not warned of here
        warnings.simplefilter("ignore")
        import schemathesis
        from schemathesis.checks import not_a_server_error
        from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
    app = make_app(paramdex.open(small_atlas), LIMITS, hosts=None)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    asked = []
    for operation in schema.get_all_operations():
        described: Any = operation.ok()

        @settings(
            max_examples=15,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=described.as_strategy())
        def ask(case: Any) -> None:
            asked.append(case.operation.path)
            case.call_and_validate(checks=checks)

        ask()
    app.state.fence.close()
    assert len(set(asked)) == len(app.openapi()["paths"])
    assert len(asked) > 100
