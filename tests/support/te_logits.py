"""Models on stand-ins for Transformer Engine's layers, in a process: `python -m tests.support.te_logits FOLDER`.

Each model folder in FOLDER is loaded and exported again, and its logits are written: logits.pt, {folder: [T, V]}.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support import te_stand_in

te_stand_in.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from prime_megatron.config.model import Layers, ParallelConfig  # noqa: E402
from prime_megatron.families.read import read_config  # noqa: E402
from prime_megatron.mcore import spec  # noqa: E402
from prime_megatron.mcore.initialize import start_megatron  # noqa: E402
from prime_megatron.mcore.model import build_model  # noqa: E402
from prime_megatron.mcore.weights import export_hf, load_hf  # noqa: E402
from tests.support import models  # noqa: E402


def main(folder: Path) -> None:
    spec._missing_for_te = lambda: None  # type: ignore[assignment]
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    topology = start_megatron(ParallelConfig(), seed=1, backend="gloo", timeout_s=60)
    found = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        (model,) = build_model(
            read_config(place), topology, ParallelConfig(), torch.float32, wrap_ddp=False, layers=Layers.te
        )
        assert model.transformer_engine
        load_hf([model], place, topology)
        tokens, _, packed, positions = models.pack(
            models.sequences(te_stand_in.LENGTHS), topology, sequence_parallel=False
        )
        with torch.no_grad():
            hidden = model(tokens, positions, None, packed_seq_params=packed)[:, 0]
            found[place.name] = hidden @ model.head_weight()[: model.family.vocab].T
        export_hf([model], folder / "exported" / place.name, topology, place)
    torch.save(found, folder / "logits.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
