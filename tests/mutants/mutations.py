"""Makes mutants: small faults in the source text of a module, one at a time."""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """One fault; its name does not change when other lines of the module do."""

    name: str
    path: str
    source: str

    def order(self, seed: int) -> str:
        """Returns what a sample is sorted by: most mutants keep their place when the code changes elsewhere."""
        return hashlib.sha256(f"{seed} {self.name}".encode()).hexdigest()


def mutants(path: str, source: str) -> list[Mutant]:
    found: list[Mutant] = []
    seen: dict[str, int] = {}
    for function, node, replacement in _changes(ast.parse(source), ""):
        old = " ".join((ast.get_source_segment(source, node) or "").split())
        name = f"{path} {function}: {old} -> {replacement}"
        seen[name] = seen.get(name, 0) + 1
        name += f" ({seen[name]})" if seen[name] > 1 else ""
        found.append(Mutant(name, path, _replaced(source, node, replacement)))
    return found


def _replaced(source: str, node: ast.stmt | ast.expr, replacement: str) -> str:
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    return (before + replacement.encode() + after).decode()


def _changes(parent: ast.AST, function: str) -> Iterator[tuple[str, ast.stmt | ast.expr, str]]:
    """Yields the function, the node and its replacement, for each change of the code below `parent`."""
    for name, value in ast.iter_fields(parent):
        if name in ("annotation", "returns", "decorator_list", "msg"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, (ast.Raise, ast.JoinedStr)):
                continue
            here = function
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                here = f"{function}.{node.name}".lstrip(".")
            if isinstance(node, (ast.stmt, ast.expr)):
                yield from ((here, node, text) for text in _replacements(node))
            yield from _changes(node, here)


def _replacements(node: ast.stmt | ast.expr) -> Iterator[str]:
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in _COMPARISONS:
            yield f"({ast.unparse(ast.Compare(left, [_COMPARISONS[type(operator)]()], [right]))})"
        case ast.Compare(left, [first, *others], comparators) if type(first) in _COMPARISONS:
            yield f"({ast.unparse(ast.Compare(left, [_COMPARISONS[type(first)](), *others], comparators))})"
        case ast.BinOp(left, operator, right) if type(operator) in _ARITHMETIC:
            yield f"({ast.unparse(ast.BinOp(left, _ARITHMETIC[type(operator)](), right))})"
        case ast.BoolOp(operator, values):
            yield f"({ast.unparse(ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values))})"
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() | float() as value):
            yield repr(value + 1)
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return None"
        case ast.Expr(ast.Call()) | ast.AugAssign():
            yield "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "pass"
