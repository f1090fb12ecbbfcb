"""The image without a builder: the Dockerfile's own steps, carried out in a clean Debian root. Linux, as root.

    .venv/bin/python -m scripts.image_root

prints what is in the image and how large it is; tests/image runs it. It knows the instructions that the Dockerfile uses
and fails on any other.
"""
