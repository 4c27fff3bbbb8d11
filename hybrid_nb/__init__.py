"""A laboratory for hybrid language models.

The names below are loaded when they are first asked for, so `import hybrid_nb` is quick.
"""
import os, sys
from importlib import import_module
__version__ = "0.0.1"

_home = {name: module for module, names in {
    "core.patterns": "parse_pattern named_patterns",
    "mixers.scan": "selective_scan",
    "mixers.ssd": "ssd",
    "models.registry": "register",
    "models.config": "HybridConfig",
    "models.modeling": "HybridForCausalLM HybridModel",
    "models.context_config": "ContextConfig",
    "models.context_vector": "ContextForCausalLM",
    "models.convert": "from_transformers to_transformers",
    "data.corpora": "DataConfig corpus",
    "data.loading": "load_data",
    "audit.model_audit": "audit_model",
    "training.config": "TrainConfig",
    "training.optim": "parameter_groups",
    "training.runner": "train train_run",
    "training.recipes": "recipe recipes",
    "study.sweeps": "sweep",
    "study.tables": "load_runs",
    "study.compute": "add_flops",
    "use.generation": "Generator",
}.items() for name in names.split()}
__all__ = list(_home)

if "torch" not in sys.modules: # OpenMP reads it when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive") # spinning threads slow a busy machine down many times

def __getattr__(name):
    if name not in _home: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_home[name]}"), name)
    return value

def __dir__(): return sorted({*globals(), *_home})
