"""A Megatron distributed checkpoint (torch_dist), of any layout, to a Hugging Face folder; needs no GPU."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from convert_cli import DTYPES, convert, make_parser  # noqa: E402

from prime_megatron.convert.to_hf import MegatronToHf  # noqa: E402


def main() -> int:
    """Checkpoints of convert_hf_to_megatron.py, and a role's folder in a run's checkpoint (with --template)."""
    parser = make_parser(__doc__ or "", "checkpoint folder", "HF folder")
    parser.add_argument(
        "--template",
        type=Path,
        metavar="HF_FOLDER",
        help="gives config, tokenizer, generation config and chat template (default: SOURCE/hf)",
    )
    parser.add_argument(
        "--drop-padding",
        action="store_true",
        help="leave out rows beyond the vocabulary that are not zero (Megatron-LM pads with noise)",
    )
    args = parser.parse_args()
    dtype = DTYPES[args.dtype] if args.dtype else None
    return convert(
        args,
        lambda: MegatronToHf(args.source, args.target, dtype, args.template, drop_padding=args.drop_padding),
    )


if __name__ == "__main__":
    sys.exit(main())
