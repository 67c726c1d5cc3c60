"""A Hugging Face folder to a Megatron distributed checkpoint (torch_dist) that loads at any layout; needs no GPU."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from convert_cli import DTYPES, convert, make_parser  # noqa: E402

from prime_megatron.convert.to_megatron import HfToMegatron  # noqa: E402


def main() -> int:
    """Policy, PRM, reference and critic alike."""
    parser = make_parser(
        __doc__ or "", "HF folder: config.json and safetensors, single or sharded", "checkpoint folder"
    )
    args = parser.parse_args()
    dtype = DTYPES[args.dtype] if args.dtype else None
    return convert(args, lambda: HfToMegatron(args.source, args.target, dtype))


if __name__ == "__main__":
    sys.exit(main())
