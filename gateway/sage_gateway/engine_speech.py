"""How a request is put to one engine: in the client's own bytes, or translated."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from sage_gateway.dialects.base import (
    NotTranslatable,
    Stamp,
    Translation,
    cannot_ask,
    not_served,
)
from sage_gateway.engines import Engine
from sage_gateway.routes import InferenceRoute


def translated(
    route: InferenceRoute, body: Mapping[str, Any], engine: Engine
) -> Translation | None:
    """The request in words of the engine; None: it has the route itself.

    Raises:
        HttpError: 501, the engine has no such route and the request cannot be translated for it;
            400, a field that must be translated makes no sense.
    """
    if route.label in engine.routes:
        return None
    driver, path = engine.config.driver, route.path
    stamp = Stamp(secrets.token_hex(12), int(time.time()))
    try:
        translation = route.dialect.translate(body, driver, stamp)
    except NotTranslatable as error:
        raise cannot_ask(engine.name, path, error) from None
    if translation is None:
        raise not_served(engine.name, driver, path)
    return translation
