"""Process groups for what travels: the block's own, and smaller ones where only some of its ranks are concerned."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist

from prime_megatron.reshard.plan import Shipment


class Links:
    """The block's group and groups of parts of it, made once each.

    A bucket for two ranks is sent from one to the other. One for at most half of the block is broadcast in a group
    of its own, so that it does not load the other ranks' links; one for more, in the whole block.

    Args:
        block: the block's group, in the plan's order of ranks.
        me: this rank's position in it.
    """

    def __init__(self, block: dist.ProcessGroup, me: int) -> None:
        self.block = block
        self.me = me
        self.size = dist.get_world_size(block)
        self._parts: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def connect(self, shipments: Iterable[Shipment]) -> list[Shipment]:
        """Make the groups that these shipments need; returns those that concern this rank, in order.

        Collective over the block. Members alone make a group, all in one order, so nobody waits in a circle.
        """
        shipments = list(shipments)
        for members in sorted({members_of(shipment) for shipment in shipments}):
            if self.me in members and self._has_own(members) and members not in self._parts:
                ranks = [self.rank(member) for member in members]
                self._parts[members] = dist.new_group(ranks, use_local_synchronization=True)
        return [s for s in shipments if self.me in members_of(s) or self._in_block(members_of(s))]

    def group(self, shipment: Shipment) -> dist.ProcessGroup:
        """Where a shipment travels."""
        return self._parts.get(members_of(shipment), self.block)

    def rank(self, member: int) -> int:
        """Global rank of a position in the block."""
        return dist.get_global_rank(self.block, member)

    def _has_own(self, members: tuple[int, ...]) -> bool:
        return 2 < len(members) <= self.size // 2

    def _in_block(self, members: tuple[int, ...]) -> bool:
        return len(members) > 2 and not self._has_own(members)


def members_of(shipment: Shipment) -> tuple[int, ...]:
    """Owner and receivers of a shipment, in order."""
    return tuple(sorted((shipment.owner, *shipment.receivers)))
