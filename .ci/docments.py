"Reads for mkdocstrings the comments beside arguments, fastcore's way of documenting them (docments)."
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


def _patched_class(func):
    "The name of the class that a function decorated with fastcore's `patch` is a method of, None for any other function."
    if not any(str(decorator.value) == "patch" for decorator in func.decorators) or not len(func.parameters): return
    return str(func.parameters[0].annotation)


def _described(path):
    "What is known of the arguments of a function, and what it returns."
    function = _object(path)
    found = docments(function, returns=True, full=False)
    returns = found.pop("return", None)
    # A command takes settings, which are described in their class.
    settings = getattr(function, "settings_type", None)
    if settings: found = {name: field.description for name, field in settings.model_fields.items()}
    return {name: text for name, text in found.items() if text and name != "self"}, returns


class Docments(griffe.Extension):
    def on_package(self, *, pkg, **_):
        "Show methods that are added by `patch` as members of their class."
        modules = [pkg]
        while modules:
            module = modules.pop()
            modules += [o for o in module.modules.values() if not o.is_alias]
            for name, func in list(module.functions.items()):
                owner = not func.is_alias and _patched_class(func)
                if owner in module.classes:
                    module.del_member(name)
                    module.classes[owner].set_member(name, func)

    def on_function(self, *, func, **_):
        if func.name.startswith("_") and func.name != "__init__": return
        path = f"{func.parent.path}.{_patched_class(func)}.{func.name}" if _patched_class(func) else func.path
        try: arguments, returns = _described(path)
        except (TypeError, ValueError, AttributeError, OSError): return
        parts = [func.docstring.value] if func.docstring else []
        if arguments: parts.append("Args:\n" + "\n".join(f"    {name}: {' '.join(text.split())}" for name, text in arguments.items()))
        if returns: parts.append(f"Returns:\n    {' '.join(returns.split())}")
        options = {"warn_missing_types": False, "warn_unknown_params": False}
        if parts: func.docstring = griffe.Docstring("\n\n".join(parts), parent=func, parser="google", parser_options=options)
