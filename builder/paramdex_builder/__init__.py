"""The offline builder: reads models, projects every parameter into embedding space, writes atlases.

The measures of ``evaluate``, which need forward passes, are here too.
"""

from paramdex_builder.build import Options, build
from paramdex_builder.evaluate import EvaluateOptions, evaluate
from paramdex_builder.progress import Progress, TerminalProgress

__all__ = [
    "EvaluateOptions", "Options", "Progress", "TerminalProgress", "build", "evaluate",
]  # fmt: skip
