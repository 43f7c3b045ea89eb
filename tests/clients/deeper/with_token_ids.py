"""langchain-openai with nothing set: the texts go as token ids of OpenAI's models."""

from langchain_openai import OpenAIEmbeddings
from question import TEXTS, URL, tell

embeddings = OpenAIEmbeddings(model="minilm", base_url=f"{URL}/v1", api_key="any")

tell(vectors={"token ids": embeddings.embed_documents(TEXTS)}, errors={})
