"""Provider prefixes of ``litellm_params.model``, as in ``anthropic/claude-sonnet-4``."""

from __future__ import annotations

OPENAI_URL = "https://api.openai.com/v1"

# Their servers speak the OpenAI protocol: bytes pass as they are.
OPENAI_COMPATIBLE = frozenset(
    {
        "openai",
        "custom_openai",
        "hosted_vllm",
        "llamafile",
        "lm_studio",
        "openai_like",
        "text-completion-openai",
    }
)

# The litellm library speaks to them. One that is missing here goes there too, with a warning.
THROUGH_LITELLM = frozenset(
    {
        *("ai21", "aleph_alpha", "anthropic", "anyscale", "azure", "azure_ai", "baseten"),
        *("bedrock", "cerebras", "clarifai", "cloudflare", "codestral", "cohere", "cohere_chat"),
        *("databricks", "deepinfra", "deepseek", "featherless_ai", "fireworks_ai", "friendliai"),
        *("galadriel", "gemini", "github", "gradient_ai", "groq", "huggingface", "infinity"),
        *("jina_ai", "litellm_proxy", "meta_llama", "mistral", "moonshot", "nebius", "nlp_cloud"),
        *("novita", "nscale", "nvidia_nim", "ollama", "ollama_chat", "oobabooga", "openrouter"),
        *("perplexity", "petals", "predibase", "replicate", "sagemaker", "sagemaker_chat"),
        *("sambanova", "snowflake", "text-completion-codestral", "together_ai", "topaz", "triton"),
        *("vercel_ai_gateway", "vertex_ai", "volcengine", "voyage", "watsonx", "xai", "xinference"),
    }
)
