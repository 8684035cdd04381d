"""x."""
from typing import Any
def import_tfds() -> Any:
    import tensorflow_datasets
    return tensorflow_datasets
