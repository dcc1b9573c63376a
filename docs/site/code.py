"""Reads what the code of a rendered project says, without importing it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Field:
    """A field of settings."""

    name: str
    module: str
    """In which it is declared."""
    annotation: ast.expr
    default: ast.expr | None
    bounds: tuple[tuple[str, object], ...]
    said: str


class Code:
    """The modules of a package, by their names below it."""

    def __init__(self, package: Path) -> None:
        self.modules: dict[str, ast.Module] = {}
        self._packages: set[str] = set()
        # A stub comes after the module of its name, and says what is imported from where.
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
            parts = path.relative_to(package).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
                self._packages.add(".".join(parts))
            self.modules[".".join(parts)] = ast.parse(path.read_text("utf-8"))

    def fields(self, module: str, name: str) -> dict[str, Field]:
        """Returns the fields of a class, with those of the classes that it extends first."""
        found = self.find(module, name)
        if found is None or not isinstance(found[1], ast.ClassDef):
            return {}
        module, declared = found
        fields: dict[str, Field] = {}
        for base in reversed(declared.bases):
            fields |= self.fields(module, ast.unparse(base))
        for statement, said in with_docstrings(declared.body):
            field = field_of(module, statement, said)
            if field.name in fields and not said:
                said = fields[field.name].said
            fields[field.name] = field_of(module, statement, said)
        return fields

    def docstring(self, module: str, name: str) -> str:
        found = self.find(module, name)
        is_class = found is not None and isinstance(found[1], ast.ClassDef)
        return (ast.get_docstring(found[1]) or "") if found and is_class else ""  # type: ignore[arg-type]

    def find(self, module: str, name: str) -> tuple[str, ast.stmt] | None:
        """Returns where a name that a module uses is declared, and the statement that does it."""
        first, _, rest = name.partition(".")
        for statement in self.modules.get(module, ast.Module([], [])).body:
            if isinstance(statement, ast.ClassDef) and statement.name == name:
                return module, statement
            if isinstance(statement, ast.Assign) and name in map(ast.unparse, statement.targets):
                return module, statement
            if isinstance(statement, ast.ImportFrom) and statement.level:
                for alias in statement.names:
                    if first == (alias.asname or alias.name):
                        origin = self._origin(module, statement)
                        if rest:
                            return self.find(f"{origin}.{alias.name}", rest)
                        return self.find(origin, alias.name)
        return None

    def calls(self, *names: str) -> Iterator[tuple[str, ast.Call]]:
        """Yields each call of one of these functions, with the module in which it stands."""
        for module, tree in self.modules.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                    yield module, node

    def value(self, module: str, node: ast.expr) -> object:
        """Returns a literal, or that of the constant which the expression names.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(node, ast.Name) and (found := self.find(module, node.id)):
            declared = found[1]
            if isinstance(declared, ast.Assign):
                return self.value(found[0], declared.value)
        if isinstance(node, ast.BinOp | ast.UnaryOp):
            # A number may be written as a power.
            code = compile(ast.Expression(node), module, "eval")
            return eval(code, {"__builtins__": {}})  # noqa: S307
        return ast.literal_eval(node)

    def _origin(self, module: str, statement: ast.ImportFrom) -> str:
        parts = module.split(".") if module else []
        up = statement.level - (module in self._packages)
        kept = parts[: len(parts) - up]
        return ".".join([*kept, *([statement.module] if statement.module else [])])


def with_docstrings(body: list[ast.stmt]) -> Iterator[tuple[ast.AnnAssign, str]]:
    """Yields each annotated name with the text that stands below it."""
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            text = after.value if isinstance(after, ast.Expr) else None
            said = text.value if isinstance(text, ast.Constant) else ""
            yield statement, " ".join(str(said).split())


def field_of(module: str, statement: ast.AnnAssign, said: str) -> Field:
    default, bounds = statement.value, []
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "Field":
        given = {each.arg: each.value for each in default.keywords}
        default = given.get("default")
        if "default_factory" in given:
            default = ast.parse(f"{ast.unparse(given['default_factory'])}()", mode="eval").body
        for option in ("ge", "gt", "le", "lt"):
            if option in given:
                bounds.append((option, given[option]))
    return Field(
        ast.unparse(statement.target), module, statement.annotation, default, tuple(bounds), said
    )
