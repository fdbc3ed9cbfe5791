"""Every key of a LiteLLM configuration: whether it is honoured, and what there is instead.

The one table behind the warnings at start and the list in docs/configuration.md. Names are those
of LiteLLM's configuration reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sage_prefect.common.errors import near_name

_SINKS = "there are no callbacks: scrape /metrics, read the logs, or see sage_settings.tracing"
_CACHE = "answers are not cached"
_SHARED = "state is not shared between processes"
_BUDGET = "there are no budgets in money; keys and tenants have rpm, tpm and max_parallel_requests"
_DATABASE = "keys live in SQLite: sage_settings.keys.file"
_ALERTS = "there are no alerts: use those of your Prometheus"
_UI = "there is no such page"
_GUARDS = "there are no guardrails"
_HEALTH = "engines are probed when calls fail: sage_settings.health"
_CLOUD = "only deployments of providers that go through the litellm library read it"
_BODY = "bodies reach engines as clients sent them; only the litellm library reads it"

# Section -> key -> None where it is honoured, else why not and what there is instead.
_TABLE: dict[str, dict[str, str | None]] = {
    "": {
        "model_list": None,
        "router_settings": None,
        "litellm_settings": None,
        "general_settings": None,
        "environment_variables": None,
        "callback_settings": _SINKS,
        "credential_list": "write api_key into litellm_params",
        "files_settings": "there are no file routes",
        "finetune_settings": "there are no fine-tuning routes",
        "guardrails": _GUARDS,
        "include": "put all of it into one file",
        "mcp_servers": "there are no MCP routes",
        "prompts": "there is no prompt management",
        "search_tools": "there are no search tools",
        "vector_store_registry": "there are no vector store routes",
    },
    "model_list[]": {
        "model_name": None,
        "litellm_params": None,
        "model_info": None,
    },
    "model_list[].litellm_params": {
        "model": None,
        "api_base": None,
        "api_key": None,
        "timeout": None,
        "order": None,
        "weight": None,
        "rpm": None,
        "tpm": None,
        "max_parallel_requests": None,
        "api_version": _CLOUD,
        "custom_llm_provider": "write the provider before the model: PROVIDER/MODEL",
        "organization": _CLOUD,
        "region_name": _CLOUD,
        "aws_access_key_id": _CLOUD,
        "aws_secret_access_key": _CLOUD,
        "aws_region_name": _CLOUD,
        "vertex_project": _CLOUD,
        "vertex_location": _CLOUD,
        "vertex_credentials": _CLOUD,
        "extra_headers": _BODY,
        "extra_body": _BODY,
        "drop_params": _BODY,
        "temperature": _BODY,
        "max_tokens": _BODY,
        "stream_timeout": "timeout is the time to the first byte, of streams too",
        "max_retries": "router_settings.num_retries counts all further attempts of a request",
        "num_retries": "router_settings.num_retries counts all further attempts of a request",
        "input_cost_per_token": _BUDGET,
        "output_cost_per_token": _BUDGET,
        "tags": "there is no routing by tags; give the model a name of its own",
        "max_budget": _BUDGET,
        "budget_duration": _BUDGET,
        "mock_response": "use `sage bench mock-engine`",
        "litellm_credential_name": "write api_key into litellm_params",
    },
    "model_list[].model_info": {
        "id": None,
        "mode": None,
        "base_model": "prices and limits of models are not looked up",
        "access_groups": "name the models in the key's or tenant's models; * is allowed",
        "supported_environments": "give each environment a file of its own",
        "health_check_model": _HEALTH,
        "health_check_timeout": _HEALTH,
        "disable_background_health_check": _HEALTH,
        "input_cost_per_token": _BUDGET,
        "output_cost_per_token": _BUDGET,
        "max_tokens": "engines refuse what is too long; context_window_fallbacks hear of it",
        "max_input_tokens": "engines refuse what is too long; context_window_fallbacks hear of it",
        "max_output_tokens": "engines refuse what is too long; context_window_fallbacks hear of it",
    },
    "router_settings": {
        "routing_strategy": None,
        "num_retries": None,
        "timeout": None,
        "allowed_fails": None,
        "cooldown_time": None,
        "disable_cooldowns": None,
        "model_group_alias": None,
        "fallbacks": None,
        "default_fallbacks": None,
        "context_window_fallbacks": None,
        "content_policy_fallbacks": None,
        "max_fallbacks": None,
        "default_max_parallel_requests": None,
        "routing_strategy_args": "policies learn what they need",
        "stream_timeout": "timeout is the time to the first byte, of streams too",
        "retry_after": "a further attempt goes to another engine, at once",
        "retry_policy": "num_retries holds for all causes but the client's own mistakes",
        "model_group_retry_policy": "num_retries holds for all models",
        "allowed_fails_policy": "allowed_fails counts all causes alike",
        "enable_pre_call_checks": "engines refuse what is too long; context_window_fallbacks hear "
        "of it",
        "enable_tag_filtering": "there is no routing by tags; give the model a name of its own",
        "tag_filtering_match_any": "there is no routing by tags; give the model a name of its own",
        "optional_pre_call_checks": "policies prefix_aware and session keep calls together",
        "deployment_affinity_ttl_seconds": "policies prefix_aware and session keep calls together",
        "default_litellm_params": "write them into each entry's litellm_params",
        "default_priority": "sage_settings.tenants[].bands and the body's priority say it",
        "polling_interval": "the queue is not polled: an engine with room takes its next request "
        "at once",
        "redis_host": _SHARED,
        "redis_port": _SHARED,
        "redis_password": _SHARED,
        "redis_url": _SHARED,
        "redis_db": _SHARED,
        "cache_responses": _CACHE,
        "cache_kwargs": _CACHE,
        "caching_groups": _CACHE,
        "client_ttl": "connections are kept as long as engines keep them",
        "provider_budget_config": _BUDGET,
        "alerting_config": _ALERTS,
        "set_verbose": "set the log level: --log-level",
        "debug_level": "set the log level: --log-level",
        "ignore_invalid_deployments": "an invalid entry is an error, so that nobody misses it",
        "router_general_settings": "it speaks of LiteLLM's own processes",
        "assistants_config": "there are no assistants routes",
    },
    "litellm_settings": {
        "num_retries": None,
        "request_timeout": None,
        "allowed_fails": None,
        "cooldown_time": None,
        "fallbacks": None,
        "default_fallbacks": None,
        "context_window_fallbacks": None,
        "content_policy_fallbacks": None,
        "success_callback": _SINKS,
        "failure_callback": _SINKS,
        "callbacks": _SINKS,
        "service_callbacks": _SINKS,
        "turn_off_message_logging": "prompts and answers are never logged",
        "redact_user_api_key_info": "keys are never logged",
        "json_logs": "set the log format: --log-format json",
        "set_verbose": "set the log level: --log-level",
        "cache": _CACHE,
        "cache_params": _CACHE,
        "drop_params": "write it into litellm_params of what goes through the litellm library",
        "modify_params": _BODY,
        "add_function_to_prompt": _BODY,
        "force_ipv4": "it is the resolver's choice",
        "ssl_verify": "certificates of engines are always verified",
        "ssl_certificate": "certificates of engines are always verified",
        "telemetry": "nothing is sent anywhere",
        "max_budget": _BUDGET,
        "budget_duration": _BUDGET,
        "max_internal_user_budget": _BUDGET,
        "default_internal_user_params": _UI,
        "default_team_settings": "sage_settings.tenants has the limits of each",
        "default_key_generate_params": "say it when a key is made",
        "upperbound_key_generate_params": "only the master key makes keys",
        "key_generation_settings": "only the master key makes keys",
        "public_model_groups": "GET /v1/models lists what the key may use",
        "disable_end_user_cost_tracking": _BUDGET,
        "enable_preview_features": "there are none",
    },
    "general_settings": {
        "master_key": None,
        "max_request_size_mb": None,
        "database_url": _DATABASE,
        "database_connection_pool_limit": _DATABASE,
        "database_connection_timeout": _DATABASE,
        "allow_requests_on_db_unavailable": "the store of keys never holds up a request",
        "store_model_in_db": "engines that register live in memory",
        "disable_spend_logs": _BUDGET,
        "proxy_batch_write_at": _BUDGET,
        "spend_report_frequency": _BUDGET,
        "max_parallel_requests": "say it per key or tenant, and per engine as "
        "model_info.max_concurrency",
        "global_max_parallel_requests": "sage_settings.queue caps what waits, the engines' windows "
        "what runs",
        "completion_model": "clients name their model; model_group_alias renames it",
        "infer_model_from_keys": "write the models into model_list",
        "custom_auth": "there is no such hook",
        "enable_jwt_auth": "clients send keys",
        "enforce_user_param": "the key's tenant says who asks",
        "allowed_routes": "only the routes of docs/gateway.md are there",
        "allowed_ips": "put a firewall or proxy in front",
        "use_x_forwarded_for": "client addresses decide nothing",
        "user_header_name": "the key's tenant says who asks",
        "litellm_key_header_name": "the key comes as `Authorization: Bearer`",
        "forward_client_headers_to_llm_api": "engines get the trace context and the request id",
        "key_management_system": "os.environ/NAME takes a secret from the environment",
        "key_management_settings": "os.environ/NAME takes a secret from the environment",
        "background_health_checks": _HEALTH,
        "health_check_interval": _HEALTH,
        "alerting": _ALERTS,
        "alerting_threshold": _ALERTS,
        "alert_types": _ALERTS,
        "alert_to_webhook_url": _ALERTS,
        "ui_access_mode": _UI,
        "max_response_size_mb": "answers are relayed as they come",
        "pass_through_endpoints": "nothing but the routes of docs/gateway.md reaches an engine",
        "disable_master_key_return": "keys are shown once, when they are made",
        "disable_adding_master_key_hash_to_db": "the master key is in no database",
    },
}


@dataclass(frozen=True, slots=True)
class LiteLLMKey:
    """A key of LiteLLM's configuration."""

    name: str
    """Full name; ``[]`` stands for any entry."""
    advice: str | None
    """None: it is honoured; else what there is instead."""


def keys() -> list[LiteLLMKey]:
    """All of them, section by section."""
    return [
        LiteLLMKey(f"{section}.{key}" if section else key, advice)
        for section, listed in _TABLE.items()
        for key, advice in listed.items()
    ]


class IgnoredKeys:
    """Collects the keys of a file that nobody reads, and says each once."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], list[str]] = {}

    def add(self, section: str, path: str, unread: Iterable[str]) -> None:
        """Note keys.

        Args:
            section: as in the table, such as ``model_list[].litellm_params``.
            path: of this very section, such as ``model_list[3].litellm_params``.
            unread: its keys that nobody has read.
        """
        for key in unread:
            self._places.setdefault((section, key), []).append(f"{path}.{key}" if path else key)

    @staticmethod
    def is_unknown(section: str, key: str) -> bool:
        """Whether LiteLLM is not known to have such a key."""
        return key not in _TABLE[section]

    def lines(self) -> list[str]:
        """One sentence per key."""
        said = []
        for (section, key), places in self._places.items():
            more = len(places) - 1
            others = f" (nor in {more} more {'entry' if more == 1 else 'entries'})" if more else ""
            said.append(f"{places[0]} is not honoured{others}: {_advice(section, key)}")
        return said


def _advice(section: str, key: str) -> str:
    listed = _TABLE[section]
    if key in listed:
        return f"{listed[key] or 'it has no effect here'}."
    meant = near_name(key, listed).rstrip()
    return f"neither LiteLLM nor this gateway is known to read it.{' ' if meant else ''}{meant}"
