"""The parts of `data/build.py`: one module for each kind of data it takes out of public packages."""
