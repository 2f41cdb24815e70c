"""The secret of a plane: whether its template can use it."""

from __future__ import annotations

from controller.adapters.http_plane.template import HttpTemplate
from controller.errors import ConfigInvalid
from controller.settings.planes import HttpPlaneSettings


def checked_secret(template: HttpTemplate, settings: HttpPlaneSettings) -> str | None:
    """Return the secret.

    Raises ConfigInvalid when it is missing, has no use, or cannot stand in a header.
    """
    secret = None if settings.secret is None else settings.secret.get_secret_value()
    if template.uses_secret and not secret:
        raise ConfigInvalid("the template needs secret or secret_file")
    if secret and not template.uses_secret:
        raise ConfigInvalid("the template has no use for a secret: is it the right one?")
    if secret and not (secret.isascii() and secret.isprintable()):
        raise ConfigInvalid("the secret is not one line of ASCII: copy it once more")
    return secret
