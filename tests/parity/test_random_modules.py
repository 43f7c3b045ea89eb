"""Models asked to be of another kind, for which sentence-transformers adds modules with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinity_emb.errors import StartupError
from tests.parity.conftest import Serve
from tests.support.small_models import save_network, save_small_late_interaction, save_small_model

pytestmark = pytest.mark.model


@pytest.mark.parametrize("kind", ["multivector", "sparse"])
@pytest.mark.parametrize("is_bare", [True, False])
def test_an_embedder_is_not_given_a_random_projection(
    kind: str, is_bare: bool, serve: Serve, tmp_path: Path
) -> None:
    """Two starts gave different vectors, and only a line of the library's log said why."""
    path = save_network(tmp_path / "m", "bert") if is_bare else save_small_model(tmp_path, "bert")
    with pytest.raises(StartupError, match=r"would be random.*--allow-missing-weights") as caught:
        serve(path, model_kind=kind)
    assert str(path) in str(caught.value)


def test_random_modules_are_served_on_request(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = save_small_model(tmp_path, "bert")
    served = serve(path, model_kind="multivector", allow_missing_weights=True)
    assert served.multivector(texts[:1])[0].shape[1] == 128


def test_the_projection_of_a_late_interaction_model_is_its_own(
    serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_late_interaction(tmp_path, "bert")
    assert len(serve(path, model_kind="multivector").multivector(texts[:2])) == 2
