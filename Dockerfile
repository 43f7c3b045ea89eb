# The server with torch. pip's own torch is the one for CUDA; the index that PyTorch's "Get started" page names for
# CPUs makes a smaller image. EXTRAS adds other engines, such as all,onnx or all,openvino,ct2:
#   docker build --build-arg TORCH_INDEX=<index> --build-arg EXTRAS=all,onnx -t infinity-emb .
# Run it as any user, with a volume for models; no key or token belongs into an image. `docker stop` waits 10 s
# and the server finishes its requests within 25 s (--shutdown-timeout-s), hence --stop-timeout:
#   docker run -p 7997:7997 -v models:/models --stop-timeout 30 -e INFINITY_API_KEY -e HF_TOKEN \
#     infinity-emb v2 --model-id …

FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY constraints.txt ./
# torch by itself and first: its index has nothing else, and a change of the code leaves this layer as it is.
RUN grep '^torch==' constraints.txt > torch.txt \
 && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY infinity_emb infinity_emb
ARG EXTRAS=all
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home --home-dir /home/infinity infinity \
 && install --directory --owner infinity --group infinity /models
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HF_HOME=/models INFINITY_HOME=/models/infinity PYTHONUNBUFFERED=1
USER 10001
VOLUME /models
EXPOSE 7997
# Loading may take minutes; --preload-only in a build, or the volume, saves that.
HEALTHCHECK --start-period=10m --interval=30s --timeout=10s CMD ["python", "-m", "infinity_emb.cli.health_check"]
ENTRYPOINT ["infinity_emb"]
CMD ["v2"]
