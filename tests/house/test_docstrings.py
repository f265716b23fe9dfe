"""Every name that we hand out is explained where it stands."""

import importlib
import inspect
from collections.abc import Iterator

import pytest

FRONT_DOORS = ["outbox", "relay", "inbox", "relay.logs"]


def _public(module_name: str) -> Iterator[tuple[str, object]]:
    """Yield the public names of a module, and the public methods of its classes that we wrote."""
    module = importlib.import_module(module_name)
    for name in module.__all__:
        exported = getattr(module, name)
        yield f"{module_name}.{name}", exported
        if inspect.isclass(exported):
            for method_name, method in vars(exported).items():
                if not method_name.startswith("_") and (inspect.isfunction(method) or isinstance(method, property)):
                    yield f"{module_name}.{name}.{method_name}", method


def _explained(thing: object) -> bool:
    if not (inspect.isclass(thing) or inspect.isfunction(thing) or isinstance(thing, property)):
        return True  # a value or a type alias: the words stand below it in the source
    said = thing.__doc__ or ""
    generated = inspect.isclass(thing) and said.startswith(f"{thing.__name__}(")  # what @dataclass makes up
    return bool(said.strip()) and not generated


@pytest.mark.parametrize("module_name", FRONT_DOORS)
def test_every_public_name_has_a_docstring(module_name: str):
    assert [name for name, thing in _public(module_name) if not _explained(thing)] == []


@pytest.mark.parametrize("module_name", FRONT_DOORS)
def test_a_front_door_tells_its_part_of_the_journey(module_name: str):
    module = importlib.import_module(module_name)
    assert module.__doc__
    assert list(_public(module_name))
