"""The offline builder: reads models, projects every parameter into embedding space, writes atlases."""

from paramdex_builder.build import Options, build
from paramdex_builder.progress import Progress, TerminalProgress

__all__ = ["Options", "Progress", "TerminalProgress", "build"]
