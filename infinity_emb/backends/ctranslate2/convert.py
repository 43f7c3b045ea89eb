"""Convert a model's network to a folder that CTranslate2 opens, once for each revision.

The weights are stored in float32; CTranslate2 converts them to other formats when it opens the folder.
"""

from __future__ import annotations

import ctranslate2
import torch
import transformers
from transformers import PreTrainedModel

from infinity_emb.backends.ctranslate2.spec import make_spec
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.storage.artifacts import CachedArtifact, artifact_dir
from infinity_emb.storage.keyed_file import make_keyed_name

# Raised when the output changes, so that older folders are converted again.
_CONVERSION_VERSION = 2


def get_conversion(encoder: PreTrainedModel, args: LoadOptions, files: ModelFiles) -> CachedArtifact:
    """Return the converted network, which is created when it is first opened.

    encoder: the network without its head, on the CPU, in float32.
    """
    name = make_keyed_name(
        args.model_name_or_path,
        files.version,
        # A model with its own code may differ from transformers' network of the same type.
        args.trust_remote_code,
        _CONVERSION_VERSION,
        type(encoder).__name__,
        ctranslate2.__version__,
        transformers.__version__,
    )

    @torch.inference_mode()
    def make(folder: str) -> None:
        make_spec(encoder).save(folder)

    return CachedArtifact(
        action=f"converting {args.model_name_or_path} to CTranslate2",
        folder=artifact_dir("ctranslate2") / name,
        main_file="model.bin",
        make=lambda folder: make(str(folder)),
    )
