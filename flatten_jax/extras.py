"""The extra `train`: what the base install has not, and what to say where it is missed."""

# As they are imported; pyproject.toml has them as they are installed.
TRAIN = (
    "array_record",
    "cykooz_resizer",
    "grain",
    "importlib_resources",
    "matplotlib",
    "numba",
    "optax",
    "orbax",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
)


def said(error: Exception) -> str:
    """What an error says, for people; where a package of the extra is not installed, how to install it."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in TRAIN:
        return f"this needs {package}, which is not installed: pip install 'flatten_jax[train]'"
    return str(error)
