"""Operations that are computed otherwise on one platform: all of them ask here."""

from collections.abc import Callable
from typing import Any

import jax

_PLAIN = jax.make_user_context(False)


def plain_forms() -> Any:
    """A context in which every operation is its plain form, on whatever platform.

    For converters to other formats, which know nothing of platforms. Compiled functions know of the context.
    """
    return _PLAIN(True)


def platform_dependent(*args: Any, default: Callable, **platforms: Callable) -> Any:
    """As `jax.lax.platform_dependent`; within `plain_forms` it is `default(*args)`."""
    if _PLAIN.value:
        return default(*args)
    return jax.lax.platform_dependent(*args, default=default, **platforms)
