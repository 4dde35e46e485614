"""The configurations that ship are of Ray's form and of ours, and fit on their machines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

from graphs.nodes import deployed
from serve_app.cli.configuration import used_models
from serve_app.core.settings import GraphSettings, Replicas
from serve_app.deployments.autoscaling import BudgetPolicy
from serve_app.deployments.ingress import IngressReplica
from serve_app.models.quantized import drop_unavailable_variants
from serve_app.models.registry import load_registry
from serve_app.models.weights import WEIGHTS_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("local", "gpu", "cluster")


def content(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text("utf-8"))
    return loaded


def settings_of(name: str) -> GraphSettings:
    (application,) = content(name)["applications"]
    return GraphSettings.model_validate(application["args"])


def deployments(settings: GraphSettings) -> Iterator[tuple[str, Replicas]]:
    yield "ingress", settings.ingress
    yield "proposals", settings.proposals
    if settings.text is not None:
        yield "text", settings.text
    for name, variant in settings.variants.items():
        yield f"{name}-encoder", variant.encoder
        yield f"{name}-decoder", variant.decoder


def memory_fraction(replicas: Replicas) -> float | None:
    compute = getattr(replicas, "compute", None)
    return None if compute is None else compute.memory_fraction


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_of_serves_form_and_of_ours(name: str) -> None:
    schema = ServeDeploySchema.model_validate(content(name))
    assert [(a.name, a.import_path) for a in schema.applications] == [("sam", "graphs.full:build")]
    settings = settings_of(name)
    made_here = {"quantized"} if name == "local" else set()
    assert set(settings.variants) == {"fast", "accurate", *made_here}
    assert settings.router.default == "fast"
    # The ingress cannot ask Ray for the address, about which it may have to warn.
    assert settings.ingress.http_host == content(name)["http_options"]["host"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_of_a_config_is_in_the_registry(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    registry = load_registry()
    settings, left_out = drop_unavailable_variants(settings_of(name))
    assert left_out.keys() == ({"quantized"} if name == "local" else set())
    # Made or not, there is an answer for those who ask for it.
    assert settings.router.aliases == {"quantized": "fast"}
    for model in used_models(settings):
        registry.get(model)
    for variant in settings.variants.values():
        assert registry.get(variant.model).family in {"sam", "sam2_onnx"}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "place",
    [(), ("variants", "fast"), ("variants", "fast", "encoder", "compute"), ("cache",), ("text",)],
)
def test_an_unknown_key_refuses_the_whole_config(name: str, place: tuple[str, ...]) -> None:
    (application,) = copy.deepcopy(content(name))["applications"]
    inner = application["args"]
    for key in place:
        inner = inner[key]
    inner["num_gpu"] = 1
    with pytest.raises(ValidationError, match="num_gpu"):
        GraphSettings.model_validate(application["args"])


@pytest.mark.parametrize("name", ["gpu", "cluster"])
def test_memory_shares_of_any_packing_of_a_gpu_stay_below_nine_tenths(name: str) -> None:
    for deployment, replicas in deployments(settings_of(name)):
        num_gpus = replicas.ray_actor_options.get("num_gpus", 0)
        share = memory_fraction(replicas)
        assert (share is None) == (num_gpus == 0), deployment
        if share is not None:
            assert share <= 0.9 * num_gpus + 1e-9, deployment


def test_the_least_replicas_of_the_gpu_config_fit_on_one_gpu() -> None:
    on_gpu = {
        name: replicas
        for name, replicas in deployments(settings_of("gpu"))
        if "num_gpus" in replicas.ray_actor_options
    }
    placed = {name: r.ray_actor_options["num_gpus"] for name, r in on_gpu.items()}
    assert placed == {
        "fast-encoder": 0.2,
        "fast-decoder": 0.1,
        "accurate-encoder": 0.2,
        "accurate-decoder": 0.1,
        "text": 0.1,
    }
    least = {name: r.autoscaling_config["min_replicas"] for name, r in on_gpu.items()}
    assert sum(placed[name] * least[name] for name in placed) <= 1
    assert sum((memory_fraction(on_gpu[name]) or 0) * least[name] for name in placed) <= 1


@pytest.mark.parametrize("name", CONFIGS)
def test_one_policy_shares_a_budget_that_holds_the_least_and_not_the_most(name: str) -> None:
    (application,) = content(name)["applications"]
    policy = AutoscalingPolicy(**application["autoscaling_policy"])
    # The policy sees what the graph is built from.
    assert policy.policy_kwargs["graph"] == application["args"]
    assert policy.policy_function == "serve_app.deployments.autoscaling:BudgetPolicy"
    assert BudgetPolicy(**policy.policy_kwargs)._pools.keys() == {
        f"{variant}-{role}"
        for variant in settings_of(name).variants
        for role in ("encoder", "decoder")
    }
    settings = settings_of(name)
    budget, unit = settings.scaling.budget, "num_cpus" if name == "local" else "num_gpus"
    assert budget is not None
    least = most = 0.0
    for variant in settings.variants.values():
        for half in (variant.encoder, variant.decoder):
            config = AutoscalingConfig(**half.autoscaling_config)
            least += config.min_replicas * half.ray_actor_options[unit]
            most += config.max_replicas * half.ray_actor_options[unit]
            # Patience is the policy's, and its figures must be fresh.
            assert (config.upscale_delay_s, config.downscale_delay_s) == (0, 0)
            assert config.metrics_interval_s < config.look_back_period_s <= 2
    assert least <= budget + 1e-9
    if name == "local":  # no half may have a second replica, and there is room for all
        assert budget == pytest.approx(most)
    else:
        assert budget < most


@pytest.mark.parametrize("name", ["gpu", "cluster"])
def test_the_budget_lets_each_half_have_one_more_replica(name: str) -> None:
    settings = settings_of(name)
    halves = [half for variant in settings.variants.values() for half in variant.components]
    least = sum(half.cost(on_gpus=True) * half.initial_replicas for half in halves)
    for half in halves:
        assert half.max_replicas > half.initial_replicas
        assert least + half.cost(on_gpus=True) <= (settings.scaling.budget or 0) + 1e-9


def test_a_budget_in_which_a_sleeper_could_never_wake_is_refused() -> None:
    arguments = content("local")["applications"][0]["args"]
    arguments["scaling"]["budget"] = 0.3
    with pytest.raises(ValidationError, match=r"budget 0\.3 is less than"):
        GraphSettings.model_validate(arguments)


def test_budget_and_text_fit_on_the_gpus() -> None:
    nodes = launcher_config()["available_node_types"]["gpu"]
    for name, gpus in (("gpu", 1), ("cluster", nodes["max_workers"] * nodes["resources"]["GPU"])):
        settings = settings_of(name)
        assert settings.text is not None
        text = settings.text.ray_actor_options["num_gpus"] * (
            settings.text.max_replicas if name == "cluster" else 1
        )
        assert (settings.scaling.budget or 0) + text <= gpus + 1e-9


def test_a_deployments_own_policy_is_passed_on() -> None:
    path = "ray.serve.autoscaling_policy:replica_queue_length_autoscaling_policy"
    replicas = Replicas(autoscaling_config={"max_replicas": 2, "policy": {"policy_function": path}})
    config = deployed(IngressReplica, "x", replicas)._deployment_config.autoscaling_config
    assert config.policy.policy_function == path


@pytest.mark.parametrize("name", ["gpu", "cluster"])
def test_gpu_configs_run_models_on_the_gpu_and_can_scale(name: str) -> None:
    settings = settings_of(name)
    assert settings.variants["accurate"].model == "vit_h"
    for deployment, replicas in deployments(settings):
        scaling = replicas.autoscaling_config
        assert 1 <= scaling["min_replicas"] <= scaling["max_replicas"], deployment
        # Without Redis a second ingress would not know the images of the first.
        fixed = deployment == "ingress" and settings.cache.redis_url is None
        assert fixed == (scaling["min_replicas"] == scaling["max_replicas"]), deployment
        compute = getattr(replicas, "compute", None)
        if compute is not None:
            assert (compute.device, compute.dtype != "float32") == ("cuda", True), deployment


def test_the_local_config_needs_no_gpu_and_lets_accurate_sleep() -> None:
    settings = settings_of("local")
    for deployment, replicas in deployments(settings):
        assert "num_gpus" not in replicas.ray_actor_options, deployment
        sleeps = replicas.autoscaling_config["min_replicas"] == 0
        assert sleeps == deployment.startswith(("accurate", "quantized")), deployment
    assert content("local")["http_options"]["host"] == "127.0.0.1"


def test_the_cluster_config_shares_embeddings_and_logs_json() -> None:
    config = content("cluster")
    assert config["proxy_location"] == "EveryNode"
    assert config["logging_config"]["encoding"] == "JSON"
    assert (settings_of("cluster").cache.redis_url or "").startswith("redis")


def launcher_config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text("utf-8"))
    return loaded


def test_the_launchers_head_takes_no_replicas_and_a_worker_takes_the_gpu_replicas() -> None:
    types = launcher_config()["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["resources"]["GPU"] >= 1
    # One node must hold the least of everything: it may be the only one.
    least_cpus = sum(
        r.ray_actor_options["num_cpus"] * r.autoscaling_config["min_replicas"]
        for _, r in deployments(settings_of("cluster"))
    )
    least_gpus = sum(
        r.ray_actor_options.get("num_gpus", 0) * r.autoscaling_config["min_replicas"]
        for _, r in deployments(settings_of("cluster"))
    )
    assert least_cpus <= types["gpu"]["resources"]["CPU"]
    assert least_gpus <= types["gpu"]["resources"]["GPU"] * types["gpu"]["min_workers"]


def test_the_launcher_installs_from_the_lock_and_names_no_registry() -> None:
    text = (ROOT / "ray_cluster.yaml").read_text("utf-8")
    assert any("requirements.lock" in line for line in launcher_config()["setup_commands"])
    assert "://" not in text
    assert ".whl" not in text
