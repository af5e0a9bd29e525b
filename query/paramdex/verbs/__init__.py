"""What an atlas can be asked: one module per verb, with a plain function of a ``Store`` that returns a ``Result``."""
