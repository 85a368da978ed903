"""Training: the only floor that knows trl and accelerate. Names load on first use."""


def __getattr__(name):
    if name == "DistillLensConfig":
        from distilllens.train.config import DistillLensConfig

        return DistillLensConfig
    if name == "DistillLensTrainer":
        from distilllens.train.trainer import DistillLensTrainer

        return DistillLensTrainer
    raise AttributeError(f"module 'distilllens.train' has no attribute {name!r}")
