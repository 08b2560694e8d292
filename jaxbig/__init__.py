"""jaxbig: techniques for the whole life of a large JAX model, on models that nobody has to edit."""

__version__ = "0.1.0"
