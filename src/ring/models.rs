//! loom models of the ring: the real code under every interleaving.
