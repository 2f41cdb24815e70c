"""No setting is documented and read by nobody: every read is resolved to its section's class."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

import controller
from controller.settings import RedisSettings, Settings, TopicNames
from controller.settings.planes import UnleashSettings
from controller.settings.section import FILE_SUFFIX, is_secret, is_section
from controller.settings.section import Section as BaseSection

PACKAGE = Path(controller.__file__).parent
Section = type[BaseModel]
Kinds = frozenset[Section]  # more than one where an annotation is a union
Types = MutableMapping[str, Kinds]


def sections(model: Section = Settings) -> Iterator[Section]:
    """Yield every section of the settings, the whole first."""
    yield model
    for info in model.model_fields.values():
        for kind in (info.annotation, *get_args(info.annotation)):
            if is_section(kind):
                yield from sections(kind)


SECTIONS: dict[str, Section] = {model.__name__: model for model in sections()}


def named(annotation: ast.expr | None) -> Kinds:
    """Return the sections that an annotation names, in whatever they are wrapped."""
    if annotation is None:
        return frozenset()
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return frozenset(model for model in SECTIONS.values() if names & _own_bases(model))


def _own_bases(model: Section) -> set[str]:
    """Return the names of a section's class and of the sections that it extends."""
    return {base.__name__ for base in model.__mro__[: model.__mro__.index(BaseSection)]}


@dataclass
class Reads:
    """The settings that some files read, each as (section, name)."""

    returns: dict[str, ast.expr | None] = field(default_factory=dict)  # by function
    protocols: dict[str, set[str]] = field(default_factory=dict)  # attributes by Protocol class
    parameters: dict[str, list[ast.expr | None]] = field(default_factory=dict)  # by function
    members: set[tuple[str, str]] = field(default_factory=set)  # properties and methods read
    found: set[tuple[str, str]] = field(default_factory=set)

    def of(self, sources: list[str]) -> set[tuple[str, str]]:
        """Return what these sources read."""
        trees = [(source, ast.parse(source)) for source in sources]
        for _, tree in trees:
            self._note_signatures(tree)
        for source, tree in trees:
            if "Settings" in source or "settings" in source:
                _File(self, tree)
        return self.found

    def note(self, sections: Kinds, name: str) -> Kinds:
        """Note a read of `name` on these sections; return the sections that it gives, if any."""
        return frozenset().union(*(self._note(section, name) for section in sections))

    def _note(self, section: Section, name: str) -> Kinds:
        if name in section.model_fields:
            kind = section.model_fields[name].annotation
            inner = frozenset(each for each in (kind, *get_args(kind)) if is_section(each))
            if not inner:
                self.found.add((section.__name__, name))
            return inner
        if (section.__name__, name) in self.members:
            return frozenset()
        self.members.add((section.__name__, name))
        member = inspect.getattr_static(section, name, None)
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function) and function.__module__.startswith("controller.settings"):
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            _File(self, tree, {"self": frozenset({section})})
        return frozenset()

    def _note_signatures(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.returns[node.name] = node.returns
                self.parameters[node.name] = [each.annotation for each in node.args.args]
            elif isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if "Protocol" in bases:
                    members = [each for each in node.body if hasattr(each, "name")]
                    self.protocols[node.name] = {str(each.name) for each in members}


class _File(ast.NodeVisitor):
    """Resolves the attributes of one file to sections, by annotations and assignments."""

    def __init__(self, reads: Reads, tree: ast.AST, start: Types | None = None) -> None:
        self._reads = reads
        self._types: ChainMap[str, Kinds] = ChainMap({} if start is None else dict(start))
        self._attributes: dict[str, Kinds] = {}  # of the file's own classes
        for _ in range(2):  # a method may read what a later one sets
            self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Read a body with its parameters' types."""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = {each.arg: kind for each in arguments if (kind := named(each.annotation))}
        self._types = self._types.new_child(own)
        self.generic_visit(node)
        self._types = self._types.parents

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Read a body with its parameters' types."""
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Read a body in the types around it."""
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Take a type that is written down."""
        self._bind(node.target, named(node.annotation))
        if isinstance(node.target, ast.Name) and (kind := named(node.annotation)):
            self._attributes[node.target.id] = kind  # a field of a dataclass
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Take a type from the value."""
        for target in node.targets:
            self._bind_from(target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        """Take the type of the items."""
        self._bind_items(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Take the type of the items."""
        self._bind_items(node.target, node.iter)
        self.generic_visit(node)

    def visit_GeneratorExp(self, node: Any) -> None:
        """Read the sources of a comprehension before what it yields."""
        for generator in node.generators:
            self.visit(generator)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp  # noqa: N815

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note a read."""
        self._type(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note what a Protocol's functions read of a section that is handed to them."""
        name = node.func.id if isinstance(node.func, ast.Name) else None
        for argument, annotation in zip(
            node.args, self._reads.parameters.get(name or "", []), strict=False
        ):
            if isinstance(annotation, ast.Name):
                for attribute in self._reads.protocols.get(annotation.id, ()):
                    self._reads.note(self._type(argument), attribute)
        self.generic_visit(node)

    def _bind(self, target: ast.expr, kind: Kinds) -> None:
        if not kind:
            return
        if isinstance(target, ast.Name):
            self._types[target.id] = kind
        elif isinstance(target, ast.Attribute):
            self._attributes[target.attr] = kind

    def _bind_from(self, target: ast.expr, value: ast.expr) -> None:
        if not isinstance(target, ast.Tuple):
            self._bind(target, self._type(value))
        elif isinstance(value, ast.Tuple):
            for each, inner in zip(target.elts, value.elts, strict=False):
                self._bind_from(each, inner)
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            returned = self._reads.returns.get(value.func.id)
            if isinstance(returned, ast.Subscript) and isinstance(returned.slice, ast.Tuple):
                for each, annotation in zip(target.elts, returned.slice.elts, strict=False):
                    self._bind(each, named(annotation))

    def _bind_items(self, target: ast.expr, source: ast.expr) -> None:
        if isinstance(source, ast.Tuple | ast.List):
            for item in source.elts:
                self._bind_from(target, item)
            return
        is_call = isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute)
        kind = self._type(source.func.value if is_call else source)  # type: ignore[attr-defined]
        last = target.elts[-1] if isinstance(target, ast.Tuple) else target
        self._bind(last, kind)

    def _type(self, node: ast.expr) -> Kinds:
        """Return the sections that an expression may be, and note what it reads on the way."""
        match node:
            case ast.Name(id=name):
                return self._types.get(name, frozenset())
            case ast.Attribute(value=value, attr=name):
                kinds = self._type(value)
                return self._reads.note(kinds, name) if kinds else self._attributes.get(name, kinds)
            case ast.Subscript(value=value) | ast.Await(value=value):
                return self._type(value)
            case ast.IfExp(body=body, orelse=orelse):
                return self._type(body) | self._type(orelse)
            case ast.Call(func=ast.Attribute(value=value, attr="model_copy" | "get")):
                return self._type(value)
            case ast.Call(func=ast.Name(id=name)) if name in SECTIONS:
                return frozenset({SECTIONS[name]})
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                return named(self._reads.returns.get(name))
        return frozenset()


def settings_to_read() -> Iterator[tuple[str, str]]:
    """Yield every setting that some code must read, as (section, name)."""
    for section in sections():
        for name, info in section.model_fields.items():
            secret = section.model_fields.get(name.removesuffix(FILE_SUFFIX))
            is_file_of_secret = (
                name.endswith(FILE_SUFFIX)
                and secret is not None
                and is_secret(secret.annotation)  # the section itself reads the file
            )
            is_part = any(
                is_section(kind) for kind in (info.annotation, *get_args(info.annotation))
            )
            if not is_part and not is_file_of_secret and section is not TopicNames:
                yield section.__name__, name


def sources() -> list[str]:
    """Return every source outside the settings."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [path.read_text() for path in files if path.parent.name != "settings"]


def test_every_setting_is_read() -> None:
    """A setting that is documented and does nothing misleads whoever sets it."""
    found = Reads().of(sources())
    unread = [".".join(setting) for setting in settings_to_read() if setting not in found]
    assert unread == []


def test_every_topic_is_used() -> None:
    """Topics are used by their logical names."""
    text = "\n".join(sources())
    assert [name for name in TopicNames.model_fields if f'"{name}"' not in text] == []


def test_a_setting_of_another_section_does_not_count() -> None:
    """Two sections have settings of one name; each must be read by itself."""
    source = """
class Client:
    def __init__(self, settings: UnleashSettings) -> None:
        self._settings = settings

    def connect(self, redis: RedisSettings) -> float:
        return self._settings.connect_timeout_seconds + redis.call_timeout_seconds
"""
    name = "connect_timeout_seconds"
    found = Reads().of([source])
    assert (UnleashSettings.__name__, name) in found
    assert (RedisSettings.__name__, name) not in found


def test_a_section_that_is_passed_on_does_not_count() -> None:
    """Only what is read of it counts, also by a property of the section."""
    source = (
        "def f(settings: Settings):\n    g(settings.kafka)\n    return settings.kafka.events_group"
    )
    assert Reads().of([source]) == {
        ("KafkaSettings", "topic_prefix"),
        ("KafkaSettings", "group_id"),
    }
