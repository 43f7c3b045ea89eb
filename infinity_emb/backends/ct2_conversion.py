"""A model's network → a folder that CTranslate2 opens, made once for each revision.

In float32: CTranslate2 makes every other format of it when it opens it. Knows nothing of who computes it.
"""

from __future__ import annotations

import ctranslate2
import torch
import transformers
from transformers import PreTrainedModel

from infinity_emb.backends.ct2_spec import spec_of
from infinity_emb.backends.made_once import MadeOnce, folder_name, folder_of_engine
from infinity_emb.config import EngineArgs
from infinity_emb.model_files import ModelFiles

# Raised when what is written changes, so that folders of before are made anew.
_CONVERSION_VERSION = 1


def conversion(encoder: PreTrainedModel, args: EngineArgs, files: ModelFiles) -> MadeOnce:
    """What opens the folder, and makes it where it is not there.

    encoder: the network without its head, on the CPU, in float32.
    """
    name = folder_name(
        args,
        files,
        _CONVERSION_VERSION,
        type(encoder).__name__,
        ctranslate2.__version__,
        transformers.__version__,
    )

    @torch.inference_mode()
    def make(folder: str) -> None:
        spec_of(encoder).save(folder)

    return MadeOnce(
        model=args.model_name_or_path,
        deed="converted to CTranslate2",
        folder=folder_of_engine("ctranslate2") / name,
        main_file="model.bin",
        make=lambda folder: make(str(folder)),
    )
