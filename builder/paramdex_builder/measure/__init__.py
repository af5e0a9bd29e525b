"""What needs forward passes: the measures of ``evaluate`` and the stitched models of ``stitch``."""
