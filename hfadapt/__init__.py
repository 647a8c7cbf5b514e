"""hfadapt: one pretrained model, the right adapter for every data domain and hardware target."""

__version__ = "0.1.0"
