"""Print what a tagger needs that was exported for ONNX Runtime and is served over HTTP: python container/requirements.py > requirements.txt

pip would install PyTorch with the package, which `deep_fashion export` makes unnecessary. So the container installs these, then the
package without its requirements. Bounds are those of settings.ini; tests/test_container.py serves a photo with nothing else installed."""
from configparser import ConfigParser
from pathlib import Path
import re

# Of the package's own requirements; the extras `runtime` and `serve` are needed as a whole.
NEEDED = "click cloup fastcore numpy pandas pillow pydantic threadpoolctl tomli_w tqdm".split()


def requirements():
    "Requirements with their bounds, in the order of settings.ini. Raises `SystemExit` if one is not there any more."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
    settings = parser["DEFAULT"]
    own = {re.split("[<>=!~]", text)[0]: text for text in settings["requirements"].split()}
    if absent := [name for name in NEEDED if name not in own]: raise SystemExit(f"settings.ini does not require {', '.join(absent)}")
    return [*(text for name, text in own.items() if name in NEEDED),
            *settings["runtime_requirements"].split(), *settings["serve_requirements"].split()]


if __name__ == "__main__": print("\n".join(requirements()))
