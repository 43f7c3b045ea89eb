"""The order of the server's folders and modules; imports point down only."""

from __future__ import annotations

from tests.test_layers import MODULES, OWN

# Lowest first. Parts of one line do not import each other.
LAYERS = [
    ["request_errors", "error_format", "served_models", "random_ids"],
    ["schemas", "metrics"],
    ["requests"],
    ["responses"],
    ["middleware", "routing"],
    ["early_refusals"],
    ["router", "routes", "tracing"],
    ["openapi"],
    ["dialects"],
    ["endpoints", "server_app"],
    ["batches", "legacy"],
    ["app"],
]
NUMBERS = {name: number for number, names in enumerate(LAYERS) for name in names}
PREFIX = "server."


def part_of(module: str) -> str:
    """Return the folder or module directly below `server`."""
    return module.removeprefix(PREFIX).partition(".")[0]


def test_every_folder_and_module_of_the_server_has_a_layer() -> None:
    assert {part_of(module) for module in MODULES if module.startswith(PREFIX)} == set(NUMBERS)


def test_imports_inside_the_server_point_down() -> None:
    upwards = [
        entry
        for entry in OWN
        if entry.module.startswith(PREFIX) and entry.target.startswith(PREFIX)
        if part_of(entry.module) != part_of(entry.target)
        and NUMBERS[part_of(entry.module)] <= NUMBERS[part_of(entry.target)]
    ]
    assert not upwards, "these imports point up:\n" + "\n".join(map(str, upwards))


def test_dialects_do_not_import_each_other() -> None:
    def dialect_of(module: str) -> str:
        return module.removeprefix("server.dialects.").partition(".")[0]

    sideways = [
        entry
        for entry in OWN
        if entry.module.startswith("server.dialects.") and entry.target.startswith("server.dialects.")
        if dialect_of(entry.module) != dialect_of(entry.target)
    ]
    assert not sideways, "these dialects import another one:\n" + "\n".join(map(str, sideways))


def test_a_dialect_is_one_file_or_a_folder_with_routes_and_schemas() -> None:
    parts: dict[str, set[str]] = {}
    for module in MODULES:
        if module.startswith("server.dialects."):
            dialect, _, part = module.removeprefix("server.dialects.").partition(".")
            parts.setdefault(dialect, set()).add(part)
    for dialect, names in parts.items():
        assert names == {""} or {"routes", "schemas"} <= names, dialect


def test_routes_of_the_server_import_no_dialect() -> None:
    own_routes = [entry for entry in OWN if entry.module.startswith("server.routes.")]
    assert own_routes
    assert not [entry for entry in own_routes if entry.target.startswith("server.dialects.")]
