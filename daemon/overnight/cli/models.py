"""`overnight models add|list`: the model store in var/models."""

from __future__ import annotations

import argparse
from typing import Any

from overnight.cli import common, text
from overnight.cli.submit import ensure_model


def add(commands: Any) -> None:
    parser = commands.add_parser("models", help="the model store: add NAME|PATH|HUB-ID, list")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    adding = actions.add_parser("add", help="convert once to safetensors, fingerprint, keep")
    adding.add_argument(
        "source", metavar="NAME|PATH|HUB-ID", help="a built-in name, a folder or GGUF file, or org/name"
    )
    adding.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    adding.add_argument("--name", help="the name in the store (default: from the source)")
    listing = actions.add_parser("list", help="what is in the store")
    listing.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = common.home(args, looks=args.action == "list")
    if args.action == "add":
        found = ensure_model(paths, args.source, args.dtype, name=args.name)
        print(f"{found} ({args.dtype}) is in {paths.models}")
        return 0
    from overnight.engines import model_store

    found_all = model_store.list_models(paths.models)
    rows = [(m.name, m.dtype, m.params, text.size(m.bytes), m.fingerprint[:16], m.source) for m in found_all]
    if args.json:
        heads = ("name", "dtype", "params", "bytes", "fingerprint", "source")
        common.print_json([{head: getattr(m, head) for head in heads} for m in found_all])
    elif rows:
        print(text.table(("name", "dtype", "parameters", "size", "fingerprint", "source"), rows))
    else:
        print("no models yet; add one: overnight models add smollm2-135m-instruct")
    return 0
