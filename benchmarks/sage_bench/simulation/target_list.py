"""The eight targets of the hybrid policy, written down before they are measured."""

from __future__ import annotations

from sage_bench.simulation.targets import (
    Measure,
    Target,
    TargetClaim,
    scaled_to,
    with_engines,
    with_rates,
)

HYBRID = "hybrid"
_BEST_AT_SATURATION = 15.35  # good requests/s: see docs/simulation.md
_CHAT = ("chat.goodput", "chat.ttft_s.p99", "chat.tpot_s.p99")
_BATCH = "batch.tokens_per_s"
_SPLIT, _PRIORITY = "static split, best", "vLLM priority, tuned"


def _beside(scenario: str, least: float, aim: str) -> TargetClaim:
    return TargetClaim(
        f"interactive goodput in {scenario} (aim {aim})",
        Measure(scenario, HYBRID, "chat.goodput"),
        least,
    )


def _light_p99(scenario: str) -> TargetClaim:
    return TargetClaim(
        f"the worst light tenant's p99 TTFT in {scenario}, beside alone (aim 1.25)",
        Measure(scenario, HYBRID, "light.worst_tenant_ttft_s.p99"),
        1.5,
        at_least=False,
        over=Measure("noisy-alone", HYBRID, "light.worst_tenant_ttft_s.p99"),
    )


_MAIN = "interactive-beside-batch"
_INTERACTIVE = Target(
    "1",
    "Interactive beside batch",
    (_MAIN, "beside-batch-4", "beside-batch-12", "beside-batch-bursts"),
    (
        _beside(_MAIN, 0.985, "99.5 %"),
        TargetClaim(
            "batch tokens/s beside the best static split that meets the SLO (aim 1.7)",
            Measure(_MAIN, HYBRID, _BATCH),
            1.5,
            over=Measure(_MAIN, _SPLIT, _BATCH),
        ),
        TargetClaim(
            "interactive goodput beside tuned vLLM priority",
            Measure(_MAIN, HYBRID, "chat.goodput"),
            1.0,
            over=Measure(_MAIN, _PRIORITY, "chat.goodput"),
        ),
        TargetClaim(
            "batch tokens/s beside tuned vLLM priority",
            Measure(_MAIN, HYBRID, _BATCH),
            1.0,
            over=Measure(_MAIN, _PRIORITY, _BATCH),
        ),
        _beside("beside-batch-4", 0.98, "99 %"),
        _beside("beside-batch-12", 0.98, "99 %"),
        _beside("beside-batch-bursts", 0.96, "99 %"),
    ),
    (*_CHAT, _BATCH),
)

_OVERLOAD = Target(
    "2",
    "Overload of 1.2 and 1.5 times",
    ("overload", "overload/1.5x"),
    tuple(
        claim
        for scenario in ("overload", "overload/1.5x")
        for claim in (
            TargetClaim(
                f"goodput in {scenario} beside the best at saturation",
                Measure(scenario, HYBRID, "chat.good_per_s"),
                0.97,
                scale=1 / _BEST_AT_SATURATION,
            ),
            TargetClaim(
                f"share of rejected clients in {scenario} that were told when to come back",
                Measure(scenario, HYBRID, "chat.told_when"),
                1.0,
            ),
        )
    ),
    ("chat.good_per_s", "chat.rejected", "chat.ttft_s.p99", "chat.tpot_s.p99"),
    {"overload/1.5x": with_rates(1.25)},
)

_NOISY = Target(
    "3",
    "Noisy tenants",
    ("noisy-alone", "noisy-rate", "noisy-size", "noisy-both", "backlogged-tenants"),
    (
        _light_p99("noisy-rate"),
        _light_p99("noisy-size"),
        _light_p99("noisy-both"),
        TargetClaim(
            "Jain's index over weighted service of backlogged tenants",
            Measure("backlogged-tenants", HYBRID, "all.jain"),
            0.98,
        ),
        TargetClaim(
            "longest wait of a light tenant, seconds (age limit of the interactive band)",
            Measure("noisy-both", HYBRID, "light.queued_s.max"),
            30.0,
            at_least=False,
        ),
    ),
    ("light.goodput", "light.worst_tenant_ttft_s.p99", "all.jain", "all.max_service_difference_ms"),
)

_SWINGS = {2: "mixed-swing/2", 4: "mixed-swing", 8: "mixed-swing/8"}
_MIXED = Target(
    "4",
    "LLM and embeddings together, a mix that swings",
    tuple(_SWINGS.values()),
    tuple(
        claim
        for count, scenario in _SWINGS.items()
        for claim in (
            TargetClaim(
                f"chat goodput at {count} GPUs beside what theory leaves",
                Measure(scenario, HYBRID, "chat.goodput"),
                0.95,
            ),
            TargetClaim(
                f"good chats/s at {count} GPUs beside separate services, best split",
                Measure(scenario, HYBRID, "chat.good_per_s"),
                1.0,
                over=Measure(scenario, "separate services, best split", "chat.good_per_s"),
            ),
            TargetClaim(
                f"chat goodput at {count} GPUs beside a scheduler that knows the future",
                Measure(scenario, HYBRID, "chat.goodput"),
                0.9,
                over=Measure(scenario, "clairvoyant", "chat.goodput"),
            ),
        )
    ),
    ("chat.goodput", "chat.good_per_s", "ingest.goodput", "query.e2e_s.p99"),
    {"mixed-swing/2": scaled_to(2, 4), "mixed-swing/8": scaled_to(8, 4)},
)

_PREFIX = Target(
    "5",
    "Sessions with long prefixes",
    ("prefix-sessions", "hot-prefix"),
    (
        TargetClaim(
            "mean TTFT beside least outstanding",
            Measure("prefix-sessions", HYBRID, "chat.ttft_s.mean"),
            0.65,
            at_least=False,
            over=Measure("prefix-sessions", "least outstanding", "chat.ttft_s.mean"),
        ),
        *(
            TargetClaim(
                f"mean TTFT beside {name}",
                Measure("prefix-sessions", HYBRID, "chat.ttft_s.mean"),
                1.0,
                at_least=False,
                over=Measure("prefix-sessions", name, "chat.ttft_s.mean"),
            )
            for name in ("SMG cache_aware", "Dynamo cost", "LMetric")
        ),
        TargetClaim(
            "hottest engine's load beside the mean under one hot prefix",
            Measure("hot-prefix", HYBRID, "all.hottest_engine"),
            1.3,
            at_least=False,
        ),
    ),
    (
        "chat.ttft_s.mean",
        "chat.ttft_alone_s.mean",
        "chat.ttft_s.p99",
        "chat.cached_share",
        "all.hottest_engine",
    ),
)

_UNEQUAL = Target(
    "6",
    "Unequal engines",
    ("unequal-engines",),
    (
        TargetClaim(
            "goodput beside an oracle that knows the speeds",
            Measure("unequal-engines", HYBRID, "chat.good_per_s"),
            0.95,
            over=Measure("unequal-engines", "oracle", "chat.good_per_s"),
        ),
        TargetClaim(
            "degraded engine's share from 10 s on, beside before",
            Measure("unequal-engines", HYBRID, "fault0.share_after"),
            0.6,
            at_least=False,
            over=Measure("unequal-engines", HYBRID, "fault0.share_before"),
        ),
    ),
    ("chat.goodput", "chat.ttft_s.p99", "fault0.share_before", "fault0.share_after"),
)

_OFFLOAD = Target(
    "7",
    "Embeddings on CPU",
    ("cpu-offload", "cpu-offload/1%", "cpu-offload/33%"),
    tuple(
        TargetClaim(
            f"share of embedding calls within their SLO in {scenario}",
            Measure(scenario, "GPU and CPU", "ingest.goodput"),
            0.99,
        )
        for scenario in ("cpu-offload", "cpu-offload/1%", "cpu-offload/33%")
    ),
    ("chat.good_per_s", "ingest.goodput", "ingest.e2e_s.p99", "all.llm_busy"),
    {
        "cpu-offload/1%": with_rates(0.05, "ingest"),
        "cpu-offload/33%": with_rates(1.65, "ingest"),
    },
)

_SIZES = (1, 2, 4, 8, 64)
_SCALE = Target(
    "8",
    "Scale at a fixed load per engine",
    tuple(f"scale/{count}" for count in _SIZES),
    tuple(
        TargetClaim(
            f"goodput with {count} engines",
            Measure(f"scale/{count}", HYBRID, "chat.goodput"),
            0.97,
        )
        for count in _SIZES[1:]
    ),
    (*_CHAT,),
    {f"scale/{count}": with_engines(count) for count in _SIZES},
)

_NO_GAIN = Target(
    "-",
    "Where nothing can be gained",
    ("no-gain",),
    (
        TargetClaim(
            "mean TTFT beside least_outstanding",
            Measure("no-gain", HYBRID, "chat.ttft_s.mean"),
            1.02,
            at_least=False,
            over=Measure("no-gain", "least_outstanding", "chat.ttft_s.mean"),
        ),
        TargetClaim(
            "goodput beside least_outstanding",
            Measure("no-gain", HYBRID, "chat.goodput"),
            0.98,
            over=Measure("no-gain", "least_outstanding", "chat.goodput"),
        ),
    ),
    ("chat.goodput", "chat.ttft_s.mean", "chat.ttft_s.p99", "chat.tpot_s.p99"),
)


TARGETS: tuple[Target, ...] = (
    _INTERACTIVE,
    _OVERLOAD,
    _NOISY,
    _MIXED,
    _PREFIX,
    _UNEQUAL,
    _OFFLOAD,
    _SCALE,
    _NO_GAIN,
)
