"""Bytes by role and phase: the figures and their table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from prime_megatron.config import Offload
from prime_megatron.metrics.memory import memory_table, role_bytes
from prime_megatron.run.colocation import Colocation
from prime_megatron.run.residency import Residency


@dataclass
class Model:
    """A model that is away or not."""

    name: str
    sizes: Mapping[str, int]
    away: bool = False

    @property
    def memory(self) -> Model:
        return self

    def device_bytes(self) -> dict[str, int]:
        return {kind: 0 if self.away else size for kind, size in self.sizes.items()}

    def host_bytes(self) -> dict[str, int]:
        return {kind: size if self.away else 0 for kind, size in self.sizes.items()}

    def send(self, kinds: Collection[str]) -> int:
        was, self.away = self.away, self.away or "parameters" in kinds
        return 0 if was or not kinds else sum(self.sizes.values())

    def bring(self, kinds: Collection[str]) -> int:
        self.away = False
        return 0

    def settle(self) -> None: ...

    def take_stepped(self) -> tuple[int, int]:
        return 0, 0


class Nothing:
    """An engine and a sync."""

    def sleep(self, level: int) -> None: ...

    def wake(self, tags: object) -> None: ...

    def publish(self, version: int) -> None: ...


def test_every_model_by_kind_and_place() -> None:
    models = [
        Model("policy", {"parameters": 8, "gradients": 4, "optimizer": 16}),
        Model("policy_reference", {"parameters": 8, "optimizer": 0}, away=True),
    ]
    assert role_bytes(models) == {
        "policy/parameters_device_bytes": 8, "policy/parameters_host_bytes": 0,
        "policy/gradients_device_bytes": 4, "policy/gradients_host_bytes": 0,
        "policy/optimizer_device_bytes": 16, "policy/optimizer_host_bytes": 0,
        "policy_reference/parameters_device_bytes": 0, "policy_reference/parameters_host_bytes": 8,
        "policy_reference/optimizer_device_bytes": 0, "policy_reference/optimizer_host_bytes": 0,
    }  # fmt: skip


def test_table_of_a_colocated_step() -> None:
    policy = Model("policy", {"parameters": 3_000_000, "optimizer": 6_000_000})
    other = Model("policy_reference", {"parameters": 1_500_000, "optimizer": 0})
    residency = Residency(Offload.generation, [policy, other], ())
    colocation = Colocation(Nothing(), Nothing(), policy, residency)
    colocation.publish(1)
    figures = colocation.take_readings()
    assert figures["memory/trained/policy_reference/parameters_device_bytes"] == 0
    assert figures["memory/trained/policy/parameters_device_bytes"] == 3_000_000
    title, heading, *rows = memory_table(figures, 3).splitlines()
    assert "rank 3" in title
    assert heading.split("  ")[0] == "role" and heading.endswith("generation, host")
    assert [row.split() for row in rows] == [
        ["policy", "parameters", "3.000", "0.000", "0.000", "3.000"],
        ["policy", "optimizer", "6.000", "0.000", "0.000", "6.000"],
        ["policy_reference", "parameters", "1.500", "0.000", "0.000", "1.500"],
        ["all", "10.500", "0.000", "0.000", "10.500"],
    ]
    assert len({len(row) for row in (heading, *rows)}) == 1
    assert memory_table({"memory/updated_host_bytes": 1.0}, 0) == ""


def test_table_of_models_that_take_turns() -> None:
    figures = {f"memory/{edge}/policy/parameters_{place}_bytes": size
               for edge, device in (("prm_learns", 0.0), ("policy_learns", 3e6), ("updated", 3e6), ("cache_awake", 0.0))
               for place, size in (("device", device), ("host", 3e6))}  # fmt: skip
    _, heading, row, _ = memory_table(figures, 0).splitlines()
    assert [name.strip() for name in heading.split(", host")[:3]] == [
        "role    kind        prm update, device  prm update", "policy update, device  policy update",
        "generation, device  generation",
    ]  # fmt: skip
    assert row.split()[2:] == ["0.000", "3.000", "3.000", "3.000", "0.000", "3.000"]
