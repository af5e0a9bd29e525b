"""The offline builder: reads models, projects every parameter into embedding space, writes atlases.

What needs forward passes is here too: the measures of ``evaluate`` and the stitched models of ``stitch``.
"""

from paramdex_builder.build import build
from paramdex_builder.measure.evaluate import evaluate
from paramdex_builder.measure.options import EvaluateOptions
from paramdex_builder.measure.stitch import StitchOptions, stitch
from paramdex_builder.options import Options
from paramdex_builder.publish.relating import relate
from paramdex_schemas.progress import Progress, TerminalProgress

__all__ = [
    "EvaluateOptions",
    "Options",
    "Progress",
    "StitchOptions",
    "TerminalProgress",
    "build",
    "evaluate",
    "relate",
    "stitch",
]
