"""Which layers are found, and what is seen of their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from infinity_emb.backends.torch.int8.smoothquant import SharedInput, list_inner_linears, record_inputs
from tests.support.small_models import save_small_classifier

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = save_small_classifier(tmp_path_factory.mktemp("classifier"), "bert")
    return AutoModelForSequenceClassification.from_pretrained(path)


def test_the_layers_of_the_blocks_are_found_and_no_head(bert: Any) -> None:
    layers = list_inner_linears([bert])
    assert len(layers) == 6 * len(bert.bert.encoder.layer)
    assert bert.classifier not in layers
    assert bert.bert.pooler.dense not in layers


def test_a_subclass_may_compute_in_another_way_and_is_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, read: Tensor) -> Tensor:
            return 2 * super().forward(read)

    plain = nn.Linear(4, 4)
    assert list_inner_linears([nn.ModuleList([plain, Doubled(4, 4)]), nn.Linear(4, 4)]) == [plain]


def test_query_key_and_value_are_seen_to_read_the_same(bert: Any) -> None:
    attention = bert.bert.encoder.layer[0].attention
    siblings = [attention.self.query, attention.self.key, attention.self.value]
    with torch.inference_mode(), record_inputs(list_inner_linears([bert])) as seen:
        for _ in range(2):
            bert(input_ids=torch.arange(4, 20)[None])
    assert seen[0].layers == siblings
    assert seen[1].layers == [attention.output.dense]
    assert len(seen) == 4 * len(bert.bert.encoder.layer)


def test_the_largest_value_of_each_channel_is_remembered_over_all_passes() -> None:
    layer = nn.Linear(3, 2)
    with record_inputs([layer]) as seen:
        layer(torch.tensor([[[1.0, -5.0, 0.0], [2.0, 1.0, 0.0]]]))
        layer(torch.tensor([[-3.0, 4.0, 0.5]]))
    layer(torch.full((1, 3), 100.0))  # no longer looked at
    assert seen[0].largest is not None
    assert seen[0].largest.tolist() == [3.0, 5.0, 0.5]


def test_a_layer_that_no_text_reaches_is_not_among_those_seen() -> None:
    used, unused = nn.Linear(3, 2), nn.Linear(3, 2)
    with record_inputs([used, unused]) as seen:
        used(torch.ones(1, 3))
    assert [each.layers for each in seen] == [[used]]


def test_smoothing_is_chosen_only_where_it_takes_errors_away() -> None:
    shared = SharedInput([nn.Linear(4, 4)])
    shared.see(torch.randn(10, 4))

    def helpful(rows: Tensor, weight: Tensor, smoothing: Tensor | None) -> float:
        return 1.0 if smoothing is None else 0.5

    def useless(rows: Tensor, weight: Tensor, smoothing: Tensor | None) -> float:
        return 1.0

    smoothing = shared.best_smoothing(helpful)
    assert smoothing is not None
    assert smoothing.shape == (4,)
    assert shared.best_smoothing(useless) is None
