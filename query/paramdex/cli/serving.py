"""The command that shows an atlas in a browser."""

from __future__ import annotations

import click

from paramdex.cli.options import ATLAS, open_atlas, say
from paramdex_schemas import QueryError


@click.command()
@ATLAS
@click.option("--host", default="127.0.0.1", show_default=True, help="the address to listen on; 0.0.0.0 is every one")
@click.option("--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0 takes one that is free")
@click.option(
    "--sql-seconds",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    help="seconds until a visitor's SQL is stopped",
)
@click.option(
    "--sql-memory",
    type=click.IntRange(64),
    default=512,
    show_default=True,
    help="megabytes that a visitor's SQL may hold",
)
def serve(atlas: str, host: str, port: int, sql_seconds: float, sql_memory: int) -> None:
    """Explore an atlas in the browser: a page for every model, head and parameter, and its data as JSON.

    \b
    paramdex serve demo.atlas
    paramdex serve demo.atlas --port 9000
    """
    try:
        from paramdex.web.serve import serve as run
        from paramdex.web.sql.fence import Limits
    except ImportError as error:
        raise QueryError(f"serving needs {error.name}; install it with: pip install 'paramdex[web]'") from error
    opened = open_atlas(atlas)
    limits = Limits(seconds=sql_seconds, memory_mb=sql_memory)
    run(opened, host, port, limits, lambda url: say(f"{atlas} is at {url} (Ctrl+C stops)"))
