"""An SGLang frontend program against a blend server.

Start the server in another terminal:

    python -m sglang.launch_server --model-path "$(sglang-batch model smollm2)" --dtype float32 \
        --schedule-policy blend --max-total-tokens 4096 --port 30000

The program asks about each text two things that share its prefix. `run_batch` sends everything at once;
in which order it is run is the server's affair.
"""

import argparse
from pathlib import Path

import sglang as sgl

TEXTS = Path(__file__).parent / "texts"


@sgl.function
def digest(s, text):
    s += sgl.user(f"{text}\n\nGive this text a title.")
    s += sgl.assistant(sgl.gen("title", max_tokens=16, temperature=0))
    s += sgl.user("Now say in one sentence what it is about.")
    s += sgl.assistant(sgl.gen("summary", max_tokens=48, temperature=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="the server (default: %(default)s)")
    url = parser.parse_args().url

    sgl.set_default_backend(sgl.RuntimeEndpoint(url))
    names = [path for path in sorted(TEXTS.glob("*.txt")) if path.stem != "front-desk"]
    states = digest.run_batch([{"text": path.read_text()} for path in names])
    for path, state in zip(names, states, strict=True):
        print(f"{path.stem}: {state['title'].strip()}\n    {state['summary'].strip()}\n")


if __name__ == "__main__":
    main()
