"""List the loaders of the `mteb` package, grouped by how they open a model.

Read from mteb 2.26.24 and sentence-transformers 6.2. Data only; the rules are in `mteb_verdicts`.
A loader is named by its module too, because several modules of mteb use the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum


class Way(Enum):
    """Say what a loader proves about opening the folder with sentence-transformers."""

    SAME = "mteb opens it with a class of sentence-transformers, as the server does"
    FILES = "mteb goes another way; the folder's format is one that sentence-transformers opens"
    TAG = "mteb goes another way; it counts if mteb names Sentence Transformers among its frameworks"
    NO = "sentence-transformers does not open it, or not with this model's numbers"


@dataclass(frozen=True, slots=True)
class Loader:
    """Describe one loader; `reason` is the line on the page."""

    way: Way
    reason: str


# Reason → loaders, space-separated.

_SAME = {
    "opened with the same class": """
        sentence_transformer_wrapper.SentenceTransformerEncoderWrapper
        sentence_transformer_wrapper.CrossEncoderWrapper sentence_transformer_wrapper.SparseEncoderWrapper
        sentence_transformer_wrapper.MultiVectorWrapper
        sentence_transformer_wrapper.sentence_transformers_loader voyage_models.voyage_4_nano_loader
        nvidia_models._nemotron_rerank_model topk_embed_v1.TopkEmbedWrapper bekko_models.BekkoEncoderWrapper
        rerankers_custom.JinaReranker ops_moa_models.OPSWrapper""",
    "opened with the same class, an instruction before the text: send it as `prompt`": """
        instruct_wrapper.InstructSentenceTransformerModel qwen3_models.q3e_instruct_loader
        samilpwc_models.instruct_loader ultrabert_models.ultrabert_embed_loader kalm_models.KALMWrapper
        geevec_models.GeeVecLiteModel jasper_models.JasperModel nvidia_models._NVEmbedWrapper
        nomic_models.NomicWrapper qwen3_vl_embedding_models.Qwen3VLEmbeddingWrapper
        qwen3_vl_reranker.Qwen3VLRerankerWrapper bidirlm_omni_models.BidirLMOmniEncoder""",
    "opened with the same class; mteb writes the text into a template: the caller's to do": (
        "uae_models.UAEWrapper google_embeddinggemma.EmbeddingGemma2Wrapper"
    ),
    "opened with the same class; mteb picks an adapter by task, the server takes the default": (
        "jina_models.JinaWrapper jina_models.JinaV5TextWrapper jina_models.JinaV5OmniWrapper"
    ),
    "opened with the same class; mteb then sets limits for long audio and video, the server none": """
        e5_omni_models.E5OmniWrapper aurola_omni_models.AuroLAOmniWrapper
        tevatron_omni_embed_models.TevatronOmniEmbedWrapper""",
}
_FILES = {
    "a PyLate or ColBERT folder, which sentence-transformers reads; mteb uses PyLate": (
        "pylate_models.MultiVectorModel"
    ),
    "a language model asked for yes or no, as mteb does; its prompt is the folder's chat template": (
        "qwen3_reranker.Qwen3RerankerWrapper"
    ),
    "a plain transformers folder: the projected features of each side are the vector, as in mteb": """
        clip_models.CLIPModel metaclip_models.MetaClip2Model align_models.ALIGNModel
        clap_models.ClapZeroShotWrapper""",
    "a plain transformers folder; mteb pads texts to full length, the server if the folder says so": (
        "siglip_models.SiglipModelWrapper"
    ),
    "a plain transformers folder, images only; mteb takes the first token: `--pooling-method cls`": (
        "dino_models.DINOModel"
    ),
    "a plain transformers folder, audio only: the encoder's frames are averaged": (
        "whisper_models.WhisperAudioWrapper ast_model.ASTWrapper data2vec_models.Data2VecAudioWrapper"
    ),
}
_TAG = {
    "mteb opens it with `FlagEmbedding`, `model2vec` or a pipeline of its own": """
        rerankers_custom.BGEReranker model2vec_models.Model2VecModel bmretriever_models.BMRetrieverWrapper
    """,
    "mteb calls methods of the folder's remote code": """
        gme_v_models.GmeQwen2VL jina_clip.JinaCLIPModel jina_models.JinaV4Wrapper
        nvidia_models.LlamaEmbedNemotron""",
    "queries only; the documents are embedded by another model": (
        "nanovdr_models.NanoVDRWrapper colnanovdr_models.ColNanoVDRWrapper"
    ),
}
_NO = {
    "opens, but answers wrongly until mteb has put right its attention or its tokenizer": """
        omni_embed_nemotron_models.OmniEmbedNemotronWrapper wemm_models.WeMMEncoderWrapper
        evie_models.EvieWrapper""",
    "needs vectors of a sample of the corpus beside the text": "cde_models.CDEWrapper",
    "scores a whole list of documents in one pass, not pairs": """
        jina_models.JinaRerankerV3Wrapper lighton_rerank_models.LightOnListwiseRerankerWrapper
        listconranker.ListConRanker""",
    "an encoder-decoder that writes its verdict; CrossEncoder knows heads and decoders": """
        rerankers_monot5_based.MonoT5Reranker rerankers_monot5_based.FLANT5Reranker
        kalm_reranker.KaLMRerankerWrapper""",
    "a language model asked for true or false in a prompt of mteb's, which no folder holds": """
        rerankers_monot5_based.LlamaReranker rerankers_monot5_based.MistralReranker
        rerankers_monot5_based.FollowIRReranker""",
    "needs an attention mask of its own kind, which mteb builds": "querit_models.QueritWrapper",
    "needs `llm2vec`": "llm2vec_models.loader_inner llm2clip_models.llm2clip_loader",
    "a Tevatron adapter whose base model, end token and pooling are known to mteb only": (
        "repllama_models.RepLLaMAModel promptriever_models.loader_inner"
    ),
    "needs `colpali_engine` or a fork of it": """
        colpali_models.ColPaliWrapper colqwen_models.ColQwen2Wrapper colqwen_models.ColQwen2_5Wrapper
        colqwen_models.ColQwen2_5OmniWrapper colqwen_models.ColQwen3EngineWrapper
        colqwen_models.ColQwen3_5Wrapper colsmol_models.ColSmolWrapper
        colmodernvbert_models.ColModernVBertWrapper colmodernvbert_models.BiModernVBertWrapper
        nomic_multimodal.BiQwen2_5Wrapper slm_models.SLMColQwen3Wrapper slm_models.SLMColLFM2Wrapper
        slm_models.SLMColMinistral3Wrapper""",
    "remote code with methods of its own, which sentence-transformers does not call": """
        argus_qwen35.ArgusColQwen35Wrapper colqwen_models.ColQwen3Wrapper
        ops_colqwen3_models.OpsColQwen3Wrapper granite_vision_embedding_models.GraniteVisionEmbeddingWrapper
        webai_models.ColVec1Wrapper webai_models.ColVec11Wrapper
        nvidia_nemotron_vl_models.NemotronColEmbedVL nvidia_nemotron_vl_models.LlamaNemotronEmbedVL
        axiotic_models.OgmaWrapper byrne_models.ByrneEmbedModel tipsv2_models.TIPSv2Model
        nomic_models_vision.NomicVisionModel penguin_models.PenguinEncoderModel radio_models.RADIOModel
        visrag_models.VisRAGRetWrapper voiceclap_models.VoiceCLAPSmallWrapper
        hear_s11_models.HeARS11AudioWrapper dasheng_models.DashengAudioWrapper
        fusion_embedding_models.FusionEmbeddingWrapper qwen3_voice_models.Qwen3VoiceEmbeddingWrapper
        omnivinci_models.OmniVinciWrapper omniretriever_models.OmniRetrieverWrapper""",
    "a generating model whose prompt and pooling are known to mteb's code only": """
        vlm2vec_models.VLM2VecWrapper vlm2vec_models.VLM2VEC2Wrapper e5_v.E5VModel
        ops_mm_models.OpsMMEmbeddingWrapper gve_models.GVEWrapper unime_v2_models.UniMEV2Wrapper
        ume_r1.UMER1Wrapper virtue_models.VirtueWrapper moca_models.MoCaWrapper unite_models.UniteWrapper
        rzen_embed_model.RzenEmbedWrapper eagerworks_models.EagerEmbedV1Wrapper uembed_models.UEmbedEncoder
        lco_embedding_models.LCOEmbedding qwen_omni_lm.QwenOmniWrapper audio_qwen2_models.Qwen2AudioWrapper
        audio_flamingo.AudioFlamingoWrapper""",
    "needs `open_clip`, `eva_clip`, `timm`, `lavis`, `visual_bge` or `ps3`": """
        openclip_models.openclip_loader evaclip_models.evaclip_loader moco_models.mocov3_loader
        blip2_models.blip2_loader vista_models.vista_loader ps3_models.PS3Model""",
    "needs `msclap`, `wav2clip`, `muq`, `speechbrain` or `torch_vggish_yamnet`": """
        msclap_models.MSClapWrapper wav2clip_model.Wav2ClipZeroShotWrapper muq_mulan_model.MuQMuLanWrapper
        cnn14_model.CNN14Wrapper yamnet_models.yamnet_loader vggish_models.vggish_loader""",
    "several towers put together by mteb, or by `ebind`, `imagebind` or `languagebind`": """
        ebind_models.EBindWrapper imagebind_models.ImageBindWrapper
        language_bind_models.LanguageBindAudioWrapper language_bind_models.LanguageBindImageWrapper
        language_bind_models.LanguageBindOmniWrapper language_bind_models.LanguageBindVideoWrapper
        biovita_models.BioVITAWrapper
        semantic_router_multimodal_models.SemanticRouterMultiModalEmbedLargeWrapper
        semantic_router_multimodal_models.SemanticRouterMultiModalEmbedSmallWrapper""",
    "would be opened without the head or the part that mteb takes the vector from": """
        blip_models.BLIPModel encodec_model.EncodecWrapper pe_av_models.PEAudioVisualWrapper
        seamlessm4t_models.SeamlessM4TWrapper speecht5_models.SpeechT5Audio speecht5_models.SpeechT5Text
        speecht5_models.SpeechT2Multimodal""",
    "an architecture that transformers 5 has dropped": "mctct_model.MCTCTWrapper",
    "a speech encoder whose processor asks for a tokenizer, which few of these folders hold": """
        wav2vec2_models.Wav2Vec2AudioWrapper wavlm_models.WavlmWrapper hubert_models.HubertWrapper
        mms_models.MMSWrapper sewd_models.SewDWrapper unispeech_models.UniSpeechWrapper""",
    "made for video, which the server does not take": """
        facebook_jepa.VJepaV2Wrapper videomae_models.VideoMAEWrapper xclip_models.XCLIPModel
        videoprism_models.VideoPrismVisionWrapper videoprism_models.VideoPrismClipWrapper
        cosmos_embed_models.CosmosEmbed1Model viclip_models.ViCLIPWrapper""",
    "computed by mteb's own code: hashed n-grams, or marks set into the documents": (
        "spectral_models.SpectralEmbedModel bge_structural_separator.StructuralSeparatorEncoder"
    ),
    "one of mteb's baselines: random numbers, word counts or a mixture of other models": """
        bm25.bm25_loader bb25.bb25_loader hybrid_models.hybrid_bm25s_e5_loader
        hybrid_models.hybrid_bm25s_e5_dbsf_loader hybrid_models.hybrid_bm25s_e5_rsf_loader
        random_baseline.RandomEncoderBaseline random_baseline.RandomColBERTBaseline
        random_baseline.RandomSparseEncoderBaseline random_baseline.RandomCrossEncoderBaseline
        random_baseline.NoRerankingBaseline""",
}


def _loaders() -> Iterator[tuple[str, Loader]]:
    for way, groups in ((Way.SAME, _SAME), (Way.FILES, _FILES), (Way.TAG, _TAG), (Way.NO, _NO)):
        for reason, names in groups.items():
            yield from ((name, Loader(way, reason)) for name in names.split())


LOADERS: Mapping[str, Loader] = dict(_loaders())

# Loaders that always run the folder's Python; others say so for each model.
_REMOTE_CODE = """
    argus_qwen35.ArgusColQwen35Wrapper axiotic_models.OgmaWrapper bidirlm_omni_models.BidirLMOmniEncoder
    byrne_models.ByrneEmbedModel colnanovdr_models.ColNanoVDRWrapper colqwen_models.ColQwen3Wrapper
    dasheng_models.DashengAudioWrapper fusion_embedding_models.FusionEmbeddingWrapper
    gme_v_models.GmeQwen2VL granite_vision_embedding_models.GraniteVisionEmbeddingWrapper
    hear_s11_models.HeARS11AudioWrapper jina_clip.JinaCLIPModel jina_models.JinaV4Wrapper
    nomic_models_vision.NomicVisionModel nvidia_models.LlamaEmbedNemotron
    nvidia_nemotron_vl_models.LlamaNemotronEmbedVL nvidia_nemotron_vl_models.NemotronColEmbedVL
    omniretriever_models.OmniRetrieverWrapper omnivinci_models.OmniVinciWrapper
    ops_colqwen3_models.OpsColQwen3Wrapper ops_moa_models.OPSWrapper penguin_models.PenguinEncoderModel
    qwen3_voice_models.Qwen3VoiceEmbeddingWrapper radio_models.RADIOModel rerankers_custom.JinaReranker
    tipsv2_models.TIPSv2Model visrag_models.VisRAGRetWrapper voiceclap_models.VoiceCLAPSmallWrapper
    webai_models.ColVec11Wrapper webai_models.ColVec1Wrapper
"""
REMOTE_CODE = frozenset(_REMOTE_CODE.split())

# Rerankers that are a language model asked for yes or no, whatever they were made of.
LLM_RERANKERS = frozenset({"qwen3_reranker.Qwen3RerankerWrapper", "qwen3_vl_reranker.Qwen3VLRerankerWrapper"})

# Loaders of models that take images in mteb, by way of another model that takes them.
TEXT_ONLY = frozenset({"nanovdr_models.NanoVDRWrapper", "colnanovdr_models.ColNanoVDRWrapper"})

# Late-interaction models that mteb opens with code of its own, and that sentence-transformers' documentation
# lists as tested with MultiVectorEncoder. Their folders got its files after the revision that mteb names.
# Source: https://sbert.net/docs/multi_vector_encoder/pretrained_models.html
_LISTED_FOR_MULTI_VECTOR = """
    ModernVBERT/colmodernvbert TomoroAI/tomoro-colqwen3-embed-4b TomoroAI/tomoro-colqwen3-embed-8b
    VAGOsolutions/SauerkrautLM-ColLFM2-450M-v0.1 VAGOsolutions/SauerkrautLM-ColMinistral3-3b-v0.1
    VAGOsolutions/SauerkrautLM-ColQwen3-1.7b-Turbo-v0.1 VAGOsolutions/SauerkrautLM-ColQwen3-2b-v0.1
    VAGOsolutions/SauerkrautLM-ColQwen3-4b-v0.1 VAGOsolutions/SauerkrautLM-ColQwen3-8b-v0.1
    athrael-soju/colqwen3.5-4.5B-v3 jinaai/jina-colbert-v2 vidore/colSmol-256M vidore/colSmol-500M
    vidore/colpali-v1.1 vidore/colpali-v1.2 vidore/colpali-v1.3 vidore/colqwen-omni-v0.1
    vidore/colqwen2-v1.0 vidore/colqwen2.5-v0.2 vultr/VultronRetrieverCore-Qwen3.5-4.5B
    vultr/VultronRetrieverFlash-Qwen3.5-0.8B vultr/VultronRetrieverPrime-Qwen3.5-8B
    webAI-Official/webAI-ColVec1.1-4b webAI-Official/webAI-ColVec1.1-8b
"""
LISTED_FOR_MULTI_VECTOR = frozenset(_LISTED_FOR_MULTI_VECTOR.split())

# The same, but that page names a revision (a pull request) to give with `--revision`.
_LISTED_WITH_REVISION = """
    OpenSearch-AI/Ops-Colqwen3-4B Verm1ion/ColTurk-VDR-Qwen3VL-4B-v1.0 nomic-ai/colnomic-embed-multimodal-3b
    nomic-ai/colnomic-embed-multimodal-7b nvidia/llama-nemotron-colembed-vl-3b-v2
    nvidia/nemotron-colembed-vl-4b-v2 nvidia/nemotron-colembed-vl-8b-v2
"""
LISTED_WITH_REVISION = frozenset(_LISTED_WITH_REVISION.split())
