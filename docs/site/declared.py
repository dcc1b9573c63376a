"""Reads what the code of a rendered project says, without importing it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
"""What pydantic calls the ends of a range."""


@dataclass(frozen=True)
class Field:
    """A field of a settings class."""

    name: str
    module: str
    """The class that declares it."""
    annotation: ast.expr
    default: ast.expr | None
    bounds: dict[str, ast.expr]
    said: str


class Code:
    """The modules of a package, by their names below it."""

    def __init__(self, package: Path) -> None:
        self.modules: dict[str, ast.Module] = {}
        self._packages: set[str] = set()
        # A stub comes after the module of the same name, and says what is imported from where.
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
            parts = path.relative_to(package).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
                self._packages.add(".".join(parts))
            self.modules[".".join(parts)] = ast.parse(path.read_text("utf-8"))

    def fields(self, module: str, name: str) -> dict[str, Field]:
        """Returns the fields of a class, those of the classes that it extends first."""
        found = self.find(module, name)
        if found is None:
            return {}
        module, declared = found
        if not isinstance(declared, ast.ClassDef):
            return {}
        fields: dict[str, Field] = {}
        for base in reversed(declared.bases):
            fields |= self.fields(module, ast.unparse(base))
        for statement, said in with_docstrings(declared.body):
            name = ast.unparse(statement.target)
            # A class that only changes a default keeps the text of the class that it extends.
            before = fields[name].said if name in fields else ""
            fields[name] = field_of(module, statement, said or before)
        return fields

    def find(self, module: str, name: str) -> tuple[str, ast.stmt] | None:
        """Returns the module and the statement that declare a name, as this module uses it."""
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
        """Yields each call of one of these functions, with the module that contains it."""
        for module, tree in self.modules.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                    yield module, node

    def value(self, module: str, node: ast.expr) -> object:
        """Returns a literal, or that of the constant that the expression names.

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
    """Yields each annotated name with the text below it."""
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            text = after.value if isinstance(after, ast.Expr) else None
            said = text.value if isinstance(text, ast.Constant) else ""
            yield statement, " ".join(str(said).split())


def field_of(module: str, statement: ast.AnnAssign, said: str) -> Field:
    default, bounds = statement.value, {}
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "Field":
        given = {str(each.arg): each.value for each in default.keywords}
        bounds = {name: end for name, end in given.items() if name in BOUNDS}
        default = given.get("default")
        if "default_factory" in given:
            default = ast.parse(f"{ast.unparse(given['default_factory'])}()", mode="eval").body
    name = ast.unparse(statement.target)
    return Field(name, module, statement.annotation, default, bounds, said)
