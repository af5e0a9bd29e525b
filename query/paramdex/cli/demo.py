"""The command that builds the demo atlas and takes the tour of README with it."""

from __future__ import annotations

import click

from paramdex.cli.building import build_atlas
from paramdex.cli.options import FilePath
from paramdex_schemas.errors import escaped


@click.command()
@click.option("--models", default="data/models", show_default=True, type=FilePath(), help="folder of the demo models")
@click.option("-o", "--output", default="demo.atlas", show_default=True, type=FilePath(), help="the atlas to make")
def demo(models: str, output: str) -> None:
    """Build an atlas of the demo models, and of all-MiniLM-L6-v2 where it is installed, and take the tour.

    \b
    paramdex demo
    """
    from paramdex.tour import demo_sources, tour  # here, as it loads numpy

    program = click.get_current_context().find_root().command
    sources = demo_sources(models)
    build_atlas(sources, output, {})
    for command in tour(output, {source.partition("=")[0] for source in sources}):
        click.echo()
        click.secho(f"# {command.question}", fg="green")
        click.secho(escaped(f"$ {command.text}", but="\n"), bold=True)
        program.main(command.arguments, standalone_mode=False)
