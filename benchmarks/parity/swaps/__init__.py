"""pytest plugins, one a peer: ours in the place of the peer's, before its tests are imported."""
