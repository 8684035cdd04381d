"""Few-shot classification from images by class.

`class_table.py` holds images by class on the device, and `few_shot.py` draws tasks from
it: read these two first. `loaders.py`, `omniglot.py` and `glyphs.py` make tables;
`variable_tasks.py` draws ways and shots too, `grain_source.py` reads from the host what
does not fit the device, and `embedded.py` puts embeddings in place of images.
"""
