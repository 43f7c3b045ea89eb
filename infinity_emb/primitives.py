"""Import names of infinity_emb 0.0.77; the types now live in `infinity_emb.types`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from infinity_emb.types import *  # noqa: F403
from infinity_emb.types import Capability, ClassifyReturnType, RerankReturnType

# Names for annotations.
EmbeddingReturnType: TypeAlias = npt.NDArray[np.float32]
ReRankReturnType: TypeAlias = RerankReturnType
UnionReturnType: TypeAlias = EmbeddingReturnType | RerankReturnType | ClassifyReturnType
ModelCapabilites: TypeAlias = Capability
ImageClassType: TypeAlias = Any  # a URL, the bytes of a file, or an image of PIL
AudioInputType: TypeAlias = str | bytes
