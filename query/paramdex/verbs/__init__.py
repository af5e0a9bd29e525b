"""What can be asked of an atlas: one module per verb, each a plain function of a ``Store`` that gives a ``Result``."""
