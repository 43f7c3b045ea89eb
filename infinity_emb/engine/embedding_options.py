"""Resolve the options of an embedding request into what the model is to compute."""

from __future__ import annotations

from dataclasses import replace

from infinity_emb.engine.results import DEFAULT_OPTIONS, EmbedOptions
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.errors import BadInput, ModelNotDeployedError, StartupError, quote_all
from infinity_emb.items import InputOptions
from infinity_emb.postprocessing import check_dimensions
from infinity_emb.preprocessing.prompts import check_prompt, choose_prompt
from infinity_emb.types import EmbeddingDtype, Modality, ModelInfo, OutputName

NEEDS_RANGES = (EmbeddingDtype.int8, EmbeddingDtype.uint8)


class OptionResolver:
    """Check options against what one model supports, and fill in its defaults.

    default_dtype: of requests that ask for none.
    normalizes: scale vectors to length 1, unless a request says otherwise.
    has_token_vectors: the model has the output `tokens`, which is computed alone.
    """

    def __init__(
        self,
        slot: ModelSlot,
        *,
        default_dtype: EmbeddingDtype,
        has_token_vectors: bool,
        normalizes: bool = False,
    ) -> None:
        self.default_dtype = default_dtype
        self._normalizes = normalizes
        self._slot = slot
        self._has_token_vectors = has_token_vectors
        self._resolved_default: tuple[ModelInfo, InputOptions] | None = None

    def resolve(self, options: EmbedOptions) -> InputOptions:
        """Return what to compute. Raises BadInput and ModelNotDeployedError for what the model lacks."""
        if options is not DEFAULT_OPTIONS:
            return self._resolve(options)
        info = self._slot.info  # another object once the model has been loaded again
        if self._resolved_default is None or self._resolved_default[0] is not info:
            self._resolved_default = info, self._resolve(options)
        return self._resolved_default[1]

    def _resolve(self, options: EmbedOptions) -> InputOptions:
        outputs = self._check_outputs(options)
        check_prompt(options.prompt)
        prompt = choose_prompt(
            self._slot.info,
            prompt=options.prompt,
            prompt_name=options.prompt_name,
            input_type=options.input_type,
        )
        return InputOptions(
            prompt=prompt.text,
            task=prompt.task,
            truncation=options.truncation,
            max_tokens=options.max_tokens,
            outputs=outputs,
        )

    def resolve_media(self, options: EmbedOptions, modality: Modality) -> tuple[InputOptions, EmbedOptions]:
        """Return what to compute for images or audio, and the options with the outputs filled in."""
        if "tokens" in (options.outputs or ()):
            raise ModelNotDeployedError(f"{modality} inputs have no token vectors; ask for embeddings")
        dtype = self.choose_dtype(options)
        if dtype in NEEDS_RANGES:
            raise BadInput(
                f"vectors of {modality} inputs are not available as {dtype}, whose ranges come from texts;"
                " ask for float32, float16, binary or ubinary"
            )
        options = replace(options, outputs=options.outputs or dense_or_multivector(self._slot.info))
        options = replace(options, chunking=False)
        resolved = self.resolve(options)
        return replace(resolved, task=resolved.task or "document", truncation="model"), options

    def choose_dtype(self, options: EmbedOptions) -> EmbeddingDtype:
        """Return the dtype of the request's vectors."""
        return options.embedding_dtype or self.default_dtype

    def should_normalize(self, options: EmbedOptions) -> bool:
        """Return whether the request's vectors are scaled to length 1."""
        return self._normalizes if options.normalize is None else options.normalize

    def _check_outputs(self, options: EmbedOptions) -> tuple[OutputName, ...]:
        info = self._slot.info
        outputs = options.outputs or info.outputs[:1]
        if options.chunking and outputs != ("dense",):
            raise BadInput("chunking averages dense vectors; leave it out for other outputs")
        if outputs == ("tokens",) and self._has_token_vectors:
            return outputs
        unknown = [name for name in outputs if name not in info.outputs]
        if unknown:
            raise ModelNotDeployedError(
                f"model {self._slot.name!r} does not have the outputs {quote_all(unknown)};"
                f" it has {quote_all(info.outputs) or 'scores'}"
            )
        check_dimensions(options.dimensions, info.embedding_dimension)
        if self.choose_dtype(options) in NEEDS_RANGES and "multivector" in outputs:
            raise BadInput(
                f"multi-vector outputs are not available as {self.choose_dtype(options)}; ask for float32,"
                " float16, binary or ubinary"
            )
        return tuple(dict.fromkeys(outputs))


def dense_or_multivector(info: ModelInfo) -> tuple[OutputName, ...]:
    """Return the model's output that is made of arrays, for callers that expect arrays."""
    return tuple(name for name in info.outputs if name != "sparse")[:1] or ("dense",)


def check_default_dtype(dtype: EmbeddingDtype, info: ModelInfo, model_name: str) -> EmbeddingDtype:
    """Raise StartupError for a default dtype in which the model has no output.

    Models without dense vectors (scores, sparse) accept any, as one option may be given for several models.
    """
    if dtype in NEEDS_RANGES and info.outputs == ("multivector",):
        raise StartupError(
            f"--embedding-dtype {dtype} does not work with model {model_name!r}, which has one vector per"
            " token; use float32, float16, binary or ubinary"
        )
    return dtype
