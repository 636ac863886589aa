"""LangChain's own standard integration tests of its OpenAI classes; docs/clients.md says what is left out."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from typing_extensions import override

from tests.clients.conftest import EMBEDDER
from tests.e2e.house import MODEL


class TestChats(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # The penalty brings a small model to the end of its texts, and with that of its objects.
        penalty = {"frequency_penalty": 1.0}
        return {"model": MODEL, "temperature": 0, "max_tokens": 64, "stream_usage": True, "extra_body": penalty}

    @pytest.mark.xfail(strict=False, reason="nobody forces the call, and the model does not think of it")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    @override
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)


class TestResponses(TestChats):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Otherwise it sends token ids of OpenAI's own vocabulary.
        return {"model": EMBEDDER, "check_embedding_ctx_length": False}
