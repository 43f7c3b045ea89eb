# The server for CPUs. Dockerfile.cuda and Dockerfile.rocm differ in their first lines and in what "device:" marks.
#
#   docker build -t infinity-emb .
#   docker run -p 7997:7997 -v models:/app/.cache --stop-timeout 30 infinity-emb v2 --model-id BAAI/bge-small-en-v1.5
#
# EXTRAS adds engines (all,onnx,openvino), and MODELS puts models into the image (ids separated by ";"):
#   docker build --build-arg MODELS="BAAI/bge-small-en-v1.5;BAAI/bge-reranker-base" -t infinity-emb .

FROM debian:bookworm-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
 && python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 && /opt/uv/bin/uv venv /venv
ENV PATH=/opt/uv/bin:$PATH VIRTUAL_ENV=/venv \
    UV_COMPILE_BYTECODE=1 UV_HTTP_TIMEOUT=300 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_SYSTEM_CERTS=1
WORKDIR /src
COPY constraints.txt ./
# device: the build of torch, one of those that `uv pip install --help` lists; "" is the one on PyPI.
ARG TORCH_BACKEND=cpu
# torch by itself and first: a change of the code leaves this layer as it is.
RUN grep '^torch==' constraints.txt > torch.txt \
 && uv pip install ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} --requirement torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY infinity_emb infinity_emb
ARG EXTRAS=all
RUN uv pip install ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} --constraint constraints.txt ".[$EXTRAS]"

FROM debian:bookworm-slim
# Group 0 may write as well: some clusters choose the user id and give no other group.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --gid 0 --home-dir /app infinity \
 && install --directory --owner 10001 --group 0 --mode 775 /app /app/.cache /app/models
COPY --from=build /venv /venv
COPY --chmod=755 deploy/docker/entrypoint.sh /usr/local/bin/entrypoint.sh
ENV PATH=/venv/bin:$PATH HOME=/app PYTHONUNBUFFERED=1
USER 10001
WORKDIR /app
# Models in the image are outside the volume, so that nothing is mounted over them, and need no network. A gated one needs
# `--secret id=hf_token,src=FILE`, which leaves no trace in the image.
ARG MODELS=""
ARG MODELS_HOME=${MODELS:+/app/models}
ENV HF_HOME=${MODELS_HOME:-/app/.cache/huggingface} HF_HUB_OFFLINE=${MODELS:+1} INFINITY_MODEL_ID=${MODELS}
RUN --mount=type=secret,id=hf_token,uid=10001 \
    IFS=";"; for model in $MODELS; do \
        HF_HUB_OFFLINE=0 HF_TOKEN_PATH=/run/secrets/hf_token infinity_emb models download "$model" || exit; \
    done
VOLUME /app/.cache
EXPOSE 7997
# The port opens when all models are loaded, which may take minutes.
HEALTHCHECK --start-period=10m --interval=30s --timeout=10s CMD ["python", "-m", "infinity_emb.cli.health_check"]
ENTRYPOINT ["entrypoint.sh"]
CMD ["v2"]
