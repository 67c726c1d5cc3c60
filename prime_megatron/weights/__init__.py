"""Policy weights to the engine: a pure plan over slices, and the transports that carry it out.

The way of one q slice from a Megatron parameter to SGLang's fused qkv tensor, stop by stop:

 1. ``trainer.PrimeTrainer.publish`` after the policy's update -> ``run.colocation.Colocation.publish`` (models away,
    engine's weights awake) -> ``sync.WeightSync.publish``, which counts versions and has checksums compared.
 2. ``mcore.role.Role.params`` is where the slice lies: rows of ``linear_qkv.weight`` on this tensor and pipeline rank.
    ``families.megatron_layout.shard_map`` names them once, at start, as a ``parallel.shards.ShardSlice``: these rows
    are those rows of Hugging Face's ``q_proj.weight``; a family's ``Rule`` says so (``families.common``).
 3. What the engine wants, in the same language: ``families.engine_layout``: pieces of its fused tensors, or whole
    tensors in buckets. ``plan.plan_block`` intersects both (``boxes``): a ``Copy`` within a rank, a ``Transfer`` to
    others, each element of each engine tensor once. ``run.engines.build_sync`` picks one of the two:
 4a. transport live (a CPU): ``in_place.InPlaceReshard`` copies slice to slice (``slices``) straight into the engine's
    own parameters, which lie in shared memory (``segment``). Next stop: 7.
 4b. bucket, broadcast, disk (bucket is what SGLang on a GPU gets): ``by_bucket.BucketReshard`` fills buckets of whole
    ``q_proj.weight`` and others on the rank that leads the replica, each bucket by a plan as in 4a.
 5. ``rollout.process.engine.ProcessEngine.update_weights`` hands each bucket to its ``transports.Transport``:
    ``manifest`` checks names and shapes, ``buffer`` packs it into shared memory (CUDA IPC on a GPU) and posts the
    handle to the engine's process over ``rollout.process.{process,channel}``; ``broadcast`` and ``folder`` serve
    the other two transports.
 6. ``rollout.process.child`` calls ``rollout.sglang.driver``, which calls ``rollout.sglang.worker`` in every scheduler
    of SGLang (by ``payload`` through ``engine`` or ``server``): it opens the buffer and calls the model's
    ``load_weights``, where SGLang itself puts q, k and v into its ``qkv_proj`` shard.
 7. "commit" gives the version; every ``rollout.check_every`` updates the engine's bit sums are compared (``check``).
"""
