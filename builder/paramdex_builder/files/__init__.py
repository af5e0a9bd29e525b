"""The files that a build writes: units of finished work, vectors, tensors."""
