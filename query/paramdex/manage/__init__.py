"""Changing an atlas that is built: removing, renaming and merging models, and taking tables out of it."""
