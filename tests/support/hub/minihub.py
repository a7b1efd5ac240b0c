"""A small Hugging Face Hub for tests, on 127.0.0.1 only: what huggingface_hub asks for, and faults.

    python minihub.py --port 18099 --root FOLDER --seed MODELS

MODELS/ORGANISATION/NAME/ become repositories. FOLDER holds blobs/<sha256> and repos.json. Faults
are told by POST /_ctl (hubserver/faults.py). With --xet local:///FOLDER uploads and downloads go
the client's default way, through the local store of its hf_xet; without it only Git LFS is there,
and clients set HF_HUB_DISABLE_XET=1 to upload.
"""

from __future__ import annotations

import argparse
from http.server import ThreadingHTTPServer
from pathlib import Path

from support.hub.hubserver.faults import Faults
from support.hub.hubserver.handling import Handler, Server
from support.hub.hubserver.store import Store


def main() -> None:
    options = parse()
    store = Store(options.root, options.xet)
    if options.seed:
        store.import_models(options.seed)
    hub = Server(store, Faults(), options)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), type("H", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    print(f"minihub on http://127.0.0.1:{options.port}", flush=True)
    server.serve_forever()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=18099)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seed", type=Path, help="folder of ORGANISATION/NAME/")
    parser.add_argument("--trace", type=Path, help="a line of JSON for each request")
    parser.add_argument("--token", help="the only one that may write and see private repositories")
    parser.add_argument("--xet", help="local:///FOLDER")
    parser.add_argument("--chunk", type=int, default=5 * 2**20, help="bytes of a multipart upload")
    parser.add_argument("--page", type=int, default=1000, help="entries of a page of a listing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
