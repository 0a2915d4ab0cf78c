"""biox: a reproducible companion to BioX-Bridge (Li et al., ICLR 2026)."""

__version__ = "0.1.0"
