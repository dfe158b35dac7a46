"Tells mkdocstrings what stands in comments beside arguments, fastcore's way of documenting them (docments)."
from importlib import import_module

import griffe
from fastcore.docments import docments


def _object(path):
    "The function or class at a dotted path."
    parts = path.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try: found = import_module(".".join(parts[:i]))
        except ModuleNotFoundError: continue
        for name in parts[i:]: found = getattr(found, name)
        return found


class Docments(griffe.Extension):
    def on_function(self, *, func, **_):
        if func.name.startswith("_") and func.name != "__init__": return
        try: found = docments(_object(func.path), returns=True, full=False)
        except (TypeError, ValueError, AttributeError, OSError): return
        returns = found.pop("return", None)
        arguments = [f"    {name}: {' '.join(text.split())}" for name, text in found.items() if text and name != "self"]
        parts = ([func.docstring.value] if func.docstring else []) + (["Args:\n" + "\n".join(arguments)] if arguments else []) + ([f"Returns:\n    {' '.join(returns.split())}"] if returns else [])
        if parts: func.docstring = griffe.Docstring("\n\n".join(parts), parent=func, parser="google", parser_options={"warn_missing_types": False, "warn_unknown_params": False})
