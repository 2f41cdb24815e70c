"""Every setting: its meaning is written down, and a secret can come from a file."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from controller.settings import Settings


def every_field(model: type[BaseModel] = Settings, at: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting with its dotted path, sections left out."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from every_field(annotation, f"{at}{name}.")
        else:
            yield f"{at}{name}", field


def meaning_of(path: str) -> str:
    """Return what the setting at a dotted path means, in its own words."""
    *sections, name = path.split(".")
    section: Any = Settings
    for step in sections:
        section = section.model_fields[step].annotation
    words: str = section.meaning(name)
    return words


def test_every_setting_says_what_it_means() -> None:
    """Each setting has its description, and what may be None says what that does."""
    for path, field in every_field():
        description = meaning_of(path)
        assert description, path
        if field.default is None:
            assert "None" in description, path
        if path.endswith("_seconds"):
            assert field.default is not None, path


def test_every_secret_can_come_from_a_file() -> None:
    """Wherever a secret may be given, so may the path of a file that holds it."""
    paths = dict(every_field())
    secrets = [path for path, field in paths.items() if "SecretStr" in str(field.annotation)]
    assert len(secrets) >= 4
    assert all(f"{path}_file" in paths for path in secrets)
    assert all(
        field.annotation == SecretStr | None for path, field in paths.items() if path in secrets
    )
