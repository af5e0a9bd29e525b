"""The commands that change an atlas that is built, or take its tables out."""

from __future__ import annotations

from typing import Any

import click

from paramdex.cli.ctrl_c import raise_again
from paramdex.cli.options import ATLAS, FilePath, say, without_pandas


@click.command()
@ATLAS
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
def remove(atlas: str, models: tuple[str, ...]) -> None:
    """Take models out of an atlas, with all that relates them to others. The rest stays as it is.

    \b
    paramdex remove demo.atlas tiny-c
    """
    from paramdex.manage.remove import remove as run

    raise_again()
    run(atlas, models)
    say(f"removed from {atlas}: {', '.join(models)}")


@click.command()
@ATLAS
@click.argument("old")
@click.argument("new")
def rename(atlas: str, old: str, new: str) -> None:
    """Give a model of an atlas another name.

    \b
    paramdex rename demo.atlas tiny-a first
    """
    from paramdex.manage.rename import rename as run

    raise_again()
    run(atlas, old, new)
    say(f"{old} is now {new} in {atlas}")


@click.command()
@click.argument("atlases", nargs=-1, required=True, type=FilePath(), metavar="ATLAS...")
@click.option("-o", "--output", required=True, type=FilePath(), help="the atlas to make or add to")
def merge(atlases: tuple[str, ...], output: str) -> None:
    """Copy the models of several atlases into one, with what relates them. Every file is checked on the way.

    \b
    paramdex merge early.atlas late.atlas -o all.atlas
    """
    from paramdex.manage.merge import merge as run
    from paramdex_schemas.progress import TerminalProgress

    raise_again()
    run(atlases, output, TerminalProgress())
    say(f"merged into {output}")


@click.command()
@ATLAS
@click.option("-o", "--output", required=True, type=FilePath(), help="the folder or file to write")
@click.option(
    "--as",
    "form",
    type=click.Choice(["parquet", "duckdb", "csv"]),
    default="parquet",
    show_default=True,
    help="a folder of Parquet files by table and model, one DuckDB file, or one table as CSV",
)
@click.option("--table", "tables", multiple=True, help="this table; can be repeated  [default: all]")
@click.option("--in", "--model", "models", multiple=True, help="only this model; can be repeated")
def export(atlas: str, **options: Any) -> None:
    """Write the tables of an atlas for other programs: DuckDB, Spark, Polars, pandas.

    \b
    paramdex export demo.atlas -o demo-parquet
    paramdex export demo.atlas -o demo.duckdb --as duckdb --model tiny-a
    paramdex export demo.atlas -o pairs.csv --as csv --table head_pairs
    """
    without_pandas()
    from paramdex.manage.export import export as run
    from paramdex_schemas.progress import TerminalProgress

    raise_again()
    say(f"written: {run(atlas, progress=TerminalProgress(), **options)}")
