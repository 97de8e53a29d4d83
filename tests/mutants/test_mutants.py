"""The mutants are faults of the modules that they say, and the tests that should notice them exist."""

import ast

from tests.mutants.modules import EQUIVALENT, ROOT, TESTS, covering, modules
from tests.mutants.mutations import mutants

SOURCE = """
def least(values, limit=3):
    if not values or len(values) < limit:
        raise ValueError("fewer than 3")
    values.sort()
    return values[0] - 0.5
"""


def test_each_operator_constant_call_and_return_is_changed_once() -> None:
    found = mutants("least.py", SOURCE)
    assert [mutant.name.removeprefix("least.py least: ") for mutant in found] == [
        "3 -> 4",
        "not values or len(values) < limit -> (not values and len(values) < limit)",
        "not values -> (values)",
        "len(values) < limit -> (len(values) <= limit)",
        "values.sort() -> pass",
        "return values[0] - 0.5 -> return None",
        "values[0] - 0.5 -> (values[0] + 0.5)",
        "0 -> 1",
        "0.5 -> 1.5",
    ]
    assert found[3].source == SOURCE.replace("len(values) < limit", "(len(values) <= limit)")
    assert len({mutant.order(0) for mutant in found}) == len({mutant.name for mutant in found}) == 9


def test_every_mutated_module_and_its_tests_exist() -> None:
    assert len(modules()) > len(TESTS)
    assert all((ROOT / path).exists() for module in modules() for path in covering(module))


def test_every_mutant_is_a_program_and_the_equivalent_ones_are_among_them() -> None:
    found = [mutant for path in modules() for mutant in mutants(path, (ROOT / path).read_text())]
    for mutant in found:
        ast.parse(mutant.source)
    assert EQUIVALENT.keys() <= {mutant.name for mutant in found}
    assert len({mutant.name for mutant in found}) == len(found)
